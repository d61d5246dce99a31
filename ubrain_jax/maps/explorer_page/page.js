// Builds the page and starts it.

function show() {
  mark();
  colour();
  byId("colour").value = state.by;
  byId("side").value = view.side;
  showTab();
  showCounts();
  showSeen();
  showDetail();
  showView();
  redraw();
  writeHash();
}

function showView() {
  const at = `${Math.round(view.azimuth)},${Math.round(view.tilt)}`;
  const select = byId("view");
  select.value = [...select.options].some((o) => o.value === at) ? at : "";
}

// One box; many would push the brains out of sight, so later ones are folded.
function warningBox(texts) {
  const items = (some) => el("ul", null, some.map((text) => el("li", null, text)));
  if (texts.length === 1) return el("p", { class: "warning" }, texts[0]);
  const rest = texts.slice(NUM_OPEN);
  return el("div", { class: "warning" }, items(texts.slice(0, NUM_OPEN)),
    rest.length ? el("details", null, el("summary", null, `${count(rest.length)} more`),
      items(rest)) : null);
}

function build() {
  document.title = T.title;
  byId("title").textContent = T.title;
  byId("lead").textContent = T.lead;
  if (T.warnings.length) byId("warnings").append(warningBox(T.warnings));
  byId("notes").append(
    T.notes.length ? el("ul", null, T.notes.map((note) => el("li", null, note)))
      : el("p", null, "All that was given is shown; nothing was left out."),
    el("p", null, "Predicted responses and attention are rounded to a byte each; "
      + "maps of attention are relative to their maximum."));
  if (tiles.some((tile) => !tile.surface)) {
    byId("notes").append(el("p", null, "Voxels of a volume are drawn as balls at their "
      + "places in the subject's own space, each brain fitted to its frame; positions in "
      + "different brains do not correspond."));
  }
  if (tiles.some((tile) => !tile.surface && tile.axes[0] !== "R")) {
    byId("notes").append(el("p", null, "Where axes are i, j, k, it is not known where the "
      + "front of the brain is: views from behind look along j."));
  }
  if (tiles.some((tile) => tile.reach)) {
    byId("notes").append(el("p", null, "On surfaces with fewer voxels than vertices, a "
      + "vertex up to two edges from a shown voxel has the colour of the nearest."));
  }
  byId("provenance-part").hidden = !T.provenance.length;
  byId("provenance").append(...factTable(T.provenance).childNodes);
  byId("colour").append(...MODES.map(([by]) => el("option", { value: by }, label(by))));
  byId("brains").classList.toggle("many", tiles.length > 4);
  byId("brains").append(...tiles.map((tile) => tile.figure));
  byId("side-label").hidden = !mesh;
  byId("voxel-brain").append(...tiles.map((tile) =>
    el("option", { value: tile.number }, tile.name)));
  byId("picture-count").textContent = `${count(T.ids.length)}`;
  for (const kind of ["cluster", "region"]) {
    const sizes = groupsOf(kind).map((_, k) => tiles.reduce((sum, tile) => {
      let n = 0;
      for (let v = 0; v < tile.size; v++) {
        n += kind === "cluster" ? tile.cluster[v] === k
          : tile.region[v * T.rois.length + k] === 1;
      }
      return sum + n;
    }, 0));
    byId(`list-${kind}`).append(...groupsOf(kind).map((group, k) => el("li",
      { role: "option", "data-index": k, tabindex: -1 },
      kind === "cluster" ? el("span", { class: "swatch",
        style: { background: css(category(k)) } }) : null,
      el("span", { class: "name" }, group.name),
      el("span", { class: "size" }, count(sizes[k])))));
    if (!groupsOf(kind).length) {
      byId(`panel-${kind}`).append(el("p", { class: "small" }, "There are none."));
    }
    listbox(byId(`list-${kind}`), (index) => pick(kind, index));
    search(byId(`find-${kind}`), byId(`list-${kind}`));
  }
  byId("strip").append(...T.ids.map((id, k) => el("li",
    { role: "option", "data-index": k, tabindex: -1, "aria-label": id, title: id },
    el("img", { src: `data:image/jpeg;base64,${T.pictures[k]}`, alt: "" }))));
  listbox(byId("strip"), (index) => pickPicture(state.picture === index ? -1 : index));
  listbox(byId("list-voxel"), (v) => pick("voxel", v, Number(byId("voxel-brain").value)));
  listVoxels();
}

function listen() {
  byId("voxel-form").addEventListener("submit", findVoxel);
  byId("voxel-brain").addEventListener("change", listVoxels);
  byId("colour").addEventListener("change", (event) => {
    state.by = event.target.value;
    if (state.by !== "predicted") state.before = state.by;
    show();
  });
  byId("view").addEventListener("change", (event) => {
    if (!event.target.value) return;
    const [azimuth, tilt] = event.target.value.split(",").map(Number);
    turn({ azimuth, tilt, panX: 0, panY: 0 });
    settle();
  });
  byId("side").addEventListener("change", (event) => {
    turn({ side: event.target.value });
    settle();
  });
  byId("closer").addEventListener("click", () => { turn({ zoom: view.zoom * 1.25 }); settle(); });
  byId("farther").addEventListener("click", () => { turn({ zoom: view.zoom / 1.25 }); settle(); });
  byId("clear").addEventListener("click", clear);
  for (const kind of KINDS_OF_PICK) {
    byId(`tab-${kind}`).addEventListener("click", () => {
      state.tab = kind;
      showTab();
    });
  }
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (KINDS_OF_PICK.indexOf(state.tab) + step + 3) % 3;
    state.tab = KINDS_OF_PICK[next];
    showTab();
    byId(`tab-${state.tab}`).focus();
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
  });
  window.addEventListener("hashchange", followHash);
  new ResizeObserver(redraw).observe(byId("brains"));
}

async function start() {
  A = await unpack(T.arrays, take("arrays"));
  if (A["mesh/faces"]) mesh = makeMesh(A);
  tiles = T.brains.map(makeTile);
  build();
  listen();
  byId("app").hidden = false;
  const wrong = readHash();
  show();
  if (wrong.length) {
    byId("status").textContent += ` The address asks for ${wrong.join(", ")}, which is `
      + "not in this page.";
  }
  root.dataset.ready = Math.round(performance.now());
}

start().catch((error) => {
  const old = typeof DecompressionStream === "undefined";
  byId("problem").textContent = old
    ? "This browser is too old for this page: it has no DecompressionStream (Chromium 80, "
      + "Firefox 113 and Safari 16.4 have it)."
    : `This page cannot be shown: ${error.message}`;
  byId("problem").hidden = false;
});
