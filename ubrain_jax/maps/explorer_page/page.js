// State, events, and what they change.

const MODES = [
  ["cluster", "cluster"], ["selected", "picked or not"], ["score", "score"],
  ["eccentricity", "eccentricity of the field"], ["angle", "angle of the field"],
  ["size", "size of the field"], ["level", "preferred level"],
  ["predicted", "predicted response"],
];
const KINDS_OF_PICK = ["cluster", "region", "voxel"];
const NUM_SHOWN = 8; // pictures in a row of the details
const ROOM = 4; // CSS pixels: below, an outline would hide the colour it is around
const root = document.documentElement;
const T = JSON.parse(take("texts"));
let A = {};
let mesh = null;
let tiles = [];
let ranges = {};

const view = { azimuth: 0, tilt: 0, zoom: 1, panX: 0, panY: 0, side: "both" };
const state = {
  kind: null, index: -1, brain: -1, picture: -1, by: "cluster", before: "cluster",
  overlay: true, tab: "cluster",
};

const isAngle = (by) => by === "angle";
const label = (by) => (by === "score" ? T.score : MODES.find(([key]) => key === by)[1]);
const groupsOf = (kind) => (kind === "cluster" ? T.clusters : T.regions);

// ---- what is picked ---------------------------------------------------------------

function isMarked(tile, v) {
  if (state.kind === "cluster") return tile.cluster[v] === state.index;
  if (state.kind === "region") return tile.region[v * T.rois.length + state.index] === 1;
  return state.kind === "voxel" && tile.number === state.brain && v === state.index;
}

function mark() {
  for (const tile of tiles) {
    tile.numMarked = 0;
    for (let v = 0; v < tile.size; v++) {
      tile.marked[v] = state.kind && isMarked(tile, v) ? 1 : 0;
      tile.numMarked += tile.marked[v];
    }
    if (tile.surface) tile.owner = ownersOf(mesh, tile.position, tile.marked, tile.reach);
  }
}

function pick(kind, index, brain = -1) {
  Object.assign(state, { kind, index, brain });
  if (kind) state.tab = kind;
  show();
}

function pickPicture(index) {
  if (index >= 0 && state.by !== "predicted") state.before = state.by;
  state.picture = index;
  state.by = index >= 0 ? "predicted" : state.before;
  show();
}

const clear = () => {
  if (state.picture >= 0) state.by = state.before;
  Object.assign(state, { kind: null, index: -1, brain: -1, picture: -1 });
  show();
};

const responseTo = (tile, v, picture) =>
  tile.predicted[v * T.ids.length + picture] * tile.scale[v];

// ---- colours ----------------------------------------------------------------------

function limits(by) {
  if (by === "cluster" || by === "selected") return [0, 1];
  if (by === "predicted") {
    if (state.picture < 0) return [-1, 1];
    const [low, high] = range(tiles.map((tile) =>
      Float32Array.from({ length: tile.size }, (_, v) => responseTo(tile, v, state.picture))));
    const most = Math.max(Math.abs(low), Math.abs(high), 1e-6);
    return [-most, most];
  }
  if (isAngle(by)) return [-Math.PI, Math.PI];
  if (!ranges[by]) ranges[by] = range(tiles.map((tile) => tile.maps[by]));
  return ranges[by];
}

function colour() {
  const { by } = state;
  const at = { predicted: diverging, angle: cyclic }[by] || sequential;
  const [low, high] = limits(by);
  const valueOf = (tile, v) => {
    if (by !== "predicted") return tile.maps[by][v];
    return state.picture < 0 ? NaN : responseTo(tile, v, state.picture);
  };
  const turn = 2 * Math.PI;
  for (const tile of tiles) {
    for (let v = 0; v < tile.size; v++) {
      let rgb;
      if (by === "cluster") {
        rgb = tile.cluster[v] < 0 ? UNKNOWN : category(tile.cluster[v]);
      } else if (by === "selected") rgb = tile.marked[v] ? LIT : PLAIN;
      else {
        let x = valueOf(tile, v);
        if (isAngle(by)) x = ((x + Math.PI) % turn + turn) % turn - Math.PI;
        rgb = Number.isNaN(x) ? UNKNOWN : at((x - low) / (high - low));
      }
      tile.rgb.set(rgb, 3 * v);
    }
  }
  showLegend(at, low, high);
}

function showLegend(at, low, high) {
  const { by } = state;
  const parts = [];
  const grey = el("span", { class: "key" },
    el("span", { class: "swatch", style: { background: css(UNKNOWN) } }), "not known");
  if (by === "cluster") {
    parts.push("Colour: cluster, with the swatches of the list.");
    if (tiles.some((tile) => tile.cluster.includes(-1))) parts.push(grey);
    grey.lastChild.data = "in no cluster";
  } else if (by === "selected") {
    parts.push(el("span", { class: "key" },
      el("span", { class: "swatch", style: { background: css(LIT) } }), "picked"),
    el("span", { class: "key" },
      el("span", { class: "swatch", style: { background: css(PLAIN) } }), "not picked"));
  } else if (by === "predicted" && state.picture < 0) {
    parts.push("Pick a picture to see its predicted response.");
  } else {
    const name = by === "predicted" ? `predicted response to ${T.ids[state.picture]}`
      : label(by);
    const units = { predicted: "z-scores", angle: "degrees, counter-clockwise from right",
      size: T.unit, eccentricity: T.unit, level: "tap, 1 the earliest" };
    const form = (x) => (isAngle(by) ? `${Math.round(x * 180 / Math.PI)}°`
      : by === "predicted" ? signed(x) : x.toFixed(2)).replace("-", "−");
    const bar = el("span", { class: "bar", style: { background: at.gradient } });
    const ends = [low, (low + high) / 2, high].map((x) => el("span", null, form(x)));
    parts.push(el("span", { class: "bar-name" },
      name + (units[by] ? ` (${units[by]})` : "")),
    el("span", { class: "scale" }, bar, el("span", { class: "numbers" }, ends)));
    if (by !== "predicted") parts.push(grey);
  }
  if (state.kind === "voxel") {
    parts.push(el("span", { class: "key" }, el("span", { class: "swatch ring" }),
      "ring: the picked voxel, dashed where others hide it"));
  } else if (state.kind) {
    parts.push(el("span", { class: "key" }, el("span", { class: "swatch ring" }),
      "picked: large and bright, outlined when close"));
  }
  byId("legend").replaceChildren(...parts);
}

// ---- drawing ----------------------------------------------------------------------

let waiting = false;
const redraw = () => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const start = performance.now();
    draw();
    root.dataset.drawn = (performance.now() - start).toFixed(1);
  });
};

function fit() {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const wide = Math.max(120, Math.round(tiles[0].canvas.clientWidth * ratio));
  const high = Math.round(0.82 * wide);
  for (const tile of tiles) {
    if (tile.buffer && tile.buffer.width === wide) continue;
    tile.canvas.width = wide;
    tile.canvas.height = high;
    tile.context = tile.canvas.getContext("2d");
    tile.image = tile.context.createImageData(wide, high);
    tile.pixels = new Uint32Array(tile.image.data.buffer);
    const first = tiles.find((other) => other.surface && other.buffer);
    const shared = tile.surface && first && first.buffer.width === wide;
    tile.buffer = shared ? first.buffer : buffers(wide, high);
    tile.ratio = ratio;
  }
}

function draw() {
  fit();
  const faded = state.by === "cluster" || state.by === "selected";
  const isGroup = state.kind === "cluster" || state.kind === "region";
  const dim = !isGroup ? 1 : faded ? 0.5 : 0.7;
  let onMesh = null; // all surfaces turn together: one raster serves them all
  for (const tile of tiles) {
    if (tile.surface) {
      onMesh = onMesh || drawMesh(mesh, view, tile.buffer);
      tile.at = onMesh;
    } else {
      tile.at = drawPoints(
        tile.position, tile.box, tile.gap, tile.marked, isGroup, view, tile.buffer);
    }
    paint(tile.pixels, tile.buffer, tile.owner, mesh && mesh.sulc, tile.rgb, tile.marked,
      dim, faded, tile.at.radius >= ROOM * tile.ratio);
    const { width, height } = tile.buffer;
    tile.context.putImageData(tile.image, 0, 0);
    drawAxes(tile.context, tile.axes, view, width, height, tile.ratio);
    if (state.kind === "voxel" && state.brain === tile.number) ring(tile, state.index);
  }
}

// A ring around a single voxel, dashed where other voxels hide it.
function ring(tile, v) {
  const { context, ratio } = tile;
  const i = tile.surface
    ? tile.position[3 * v] * mesh.half + tile.position[3 * v + 1] : v;
  const x = tile.at.x[i], y = tile.at.y[i], radius = 11 * ratio;
  const hidden = under(tile, x, y, 4 * ratio) !== v;
  context.strokeStyle = "#ffffff";
  context.fillStyle = "#ffffff";
  context.lineWidth = 2 * ratio;
  context.setLineDash(hidden ? [4 * ratio, 4 * ratio] : []);
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.stroke();
  context.setLineDash([]);
  if (hidden) {
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.fillText("behind", x, y - radius - 8 * ratio);
  }
}

// Voxel at a pixel, or else the nearest within some pixels; -1 if none.
function under(tile, x, y, reach) {
  const { width, height, what } = tile.buffer;
  let found = -1, least = Infinity;
  const r = Math.ceil(reach);
  for (let dy = -r; dy <= r; dy++) {
    for (let dx = -r; dx <= r; dx++) {
      const px = Math.round(x) + dx, py = Math.round(y) + dy, d = dx * dx + dy * dy;
      if (px < 0 || py < 0 || px >= width || py >= height || d >= least) continue;
      const w = what[py * width + px];
      const v = w < 0 ? -1 : tile.owner ? tile.owner[w] : w;
      if (v < 0 || d > reach * reach) continue;
      found = v;
      least = d;
    }
  }
  return found;
}

// ---- text -------------------------------------------------------------------------

function describe(tile, v, withScore = true) {
  const parts = [`voxel ${tile.voxel[v]}`];
  if (tile.cluster[v] >= 0) parts.push(T.clusters[tile.cluster[v]].name);
  const rois = T.rois.filter((_, r) => tile.region[v * T.rois.length + r]);
  if (rois.length) parts.push(rois.join(", "));
  if (withScore && !Number.isNaN(tile.maps.score[v])) parts.push(`${T.score} ${plain(tile.maps.score[v])}`);
  return parts.join(" · ");
}

function where(tile, v) {
  const [a, b, c] = [0, 1, 2].map((d) => tile.position[3 * v + d]);
  if (tile.surface) return `${a ? "right" : "left"} hemisphere, vertex ${b}`;
  return `${tile.axes.join(", ")}: ${[a, b, c].map((x) => +x.toFixed(1)).join(", ")}`;
}

function nameOfPick() {
  if (state.kind === "voxel") {
    const tile = tiles[state.brain];
    return `voxel ${tile.voxel[state.index]} of ${tile.name}`;
  }
  return groupsOf(state.kind)[state.index].name;
}

function showCounts() {
  let all = 0, brains = 0;
  for (const tile of tiles) {
    tile.said.textContent = state.kind
      ? `${count(tile.numMarked)} of ${count(tile.size)} picked` : "";
    tile.figure.classList.toggle("lit", state.kind !== null && tile.numMarked > 0);
    all += tile.numMarked;
    brains += tile.numMarked > 0;
  }
  const said = [];
  if (state.kind === "voxel") said.push(`Picked ${nameOfPick()}.`);
  else if (state.kind) {
    said.push(`Picked ${nameOfPick()}: ${count(all)} shown voxels in ${brains} of `
      + `${tiles.length} subjects.`);
  } else said.push("Nothing picked.");
  if (state.picture >= 0) said.push(`Picture ${T.ids[state.picture]}.`);
  byId("status").textContent = said.join(" ");
}

function pictureTile(index, caption, overlay, said) {
  const frameOf = el("span", { class: "frame" },
    el("img", { src: `data:image/jpeg;base64,${T.pictures[index]}`, alt: "" }));
  if (overlay && state.overlay) {
    const over = heat(overlay.data, overlay.start, overlay.shape, false);
    over.className = "over";
    frameOf.append(over);
  }
  return el("button", {
    type: "button", class: "tile", "data-picture": index,
    "aria-pressed": state.picture === index ? "true" : "false",
    "aria-label": `${T.ids[index]}, ${said}: show its predicted map`,
    on: { click: () => pickPicture(state.picture === index ? -1 : index) },
  }, frameOf, el("span", { class: "caption" }, caption));
}

function pictureRow(title, note, indices, captionOf, overlayOf, name) {
  if (!indices.length) return [];
  return [
    el("h3", null, title),
    note ? el("p", { class: "small" }, note) : null,
    el("div", { class: "tiles", "data-row": name },
      indices.slice(0, NUM_SHOWN).map((index, rank) => pictureTile(
        index, captionOf(index), overlayOf(rank), `${title.toLowerCase()}, ${rank + 1}`))),
  ];
}

function overlayBox() {
  const box = el("input", { type: "checkbox", id: "overlay",
    on: { change: (event) => {
      state.overlay = event.target.checked;
      showDetail();
      byId("overlay").focus();
    } } });
  box.checked = state.overlay;
  return el("label", { class: "check" }, box, " attention on the pictures (red: strong)");
}

const slice = (array, k) => {
  const shape = array.shape.slice(-2);
  return { data: array.data, shape, start: k * shape[0] * shape[1] };
};

function showDetail() {
  const parts = !state.kind ? guide()
    : state.kind === "voxel" ? voxelDetail() : groupDetail();
  byId("detail").replaceChildren(...parts.flat(9).filter((part) => part !== null));
}

function guide() {
  const rows = tiles.map((tile) => [tile.name, tile.space,
    `${count(tile.size)} of ${count(tile.total)}`]);
  return [
    el("h2", null, "Nothing picked"),
    el("ol", { class: "guide" },
      el("li", null, "Pick a cluster or a region in the list, or click on a brain."),
      el("li", null, "Its voxels light up in every subject; what they prefer, and where "
        + "they look, comes here."),
      el("li", null, "Pick a picture: every voxel takes the colour of its predicted "
        + "response.")),
    el("h3", null, "Subjects"),
    textTable(["subject", "space", "voxels shown"], rows, "Subjects"),
  ];
}

function groupDetail() {
  const { kind, index } = state;
  const group = groupsOf(kind)[index];
  const field = A[`${kind}${index}/field`], attention = A[`${kind}${index}/attention`];
  const overlayOf = (rank) =>
    attention && rank < attention.shape[0] ? slice(attention, rank) : null;
  const none = () => null;
  const id = (k) => T.ids[k];
  return [
    el("p", { class: "small" }, group.kind),
    el("h2", null, group.name),
    group.about.length ? factTable(group.about) : null,
    attention ? overlayBox() : null,
    pictureRow("Strongest predicted", attention ? "with the mean attention of its voxels"
      : "", group.top, id, overlayOf, "top"),
    pictureRow("Strongest measured", "", group.measured, id, none, "measured"),
    pictureRow("Weakest predicted", "", group.bottom, id, none, "bottom"),
    field ? [el("h3", null, "Mean attention over pictures"),
      fieldView(field.data, 0, field.shape, null, `Mean attention of ${group.name}`),
      el("p", { class: "small" }, "The cross is the middle of the picture; bright: "
        + "strong, relative to its maximum.")] : null,
    group.rows.length ? [el("h3", null, kind === "cluster" ? "Regions" : "Clusters"),
      textTable(group.head, group.rows, `Table of ${group.name}`)] : null,
  ];
}

function voxelDetail() {
  const tile = tiles[state.brain], v = state.index;
  const order = T.ids.map((_, k) => k).sort((a, b) =>
    responseTo(tile, v, b) - responseTo(tile, v, a) || a - b);
  const own = tile.attention;
  const fieldOf = tile.field && slice(tile.field, v);
  const overlayOf = (rank) => {
    if (!own) return fieldOf;
    const top = own.shape[1];
    return rank < top ? slice(own, v * top + rank) : null;
  };
  const z = (k) => `${signed(responseTo(tile, v, k))} z`;
  const rois = T.rois.filter((_, r) => tile.region[v * T.rois.length + r]);
  const cluster = tile.cluster[v];
  const degrees = (x) => (Number.isNaN(x) ? "unknown"
    : `${Math.round((((x * 180) / Math.PI) % 360 + 360) % 360)}°`);
  return [
    el("p", { class: "small" }, tile.name),
    el("h2", null, `Voxel ${tile.voxel[v]}`),
    factTable([
      ["place", where(tile, v)],
      ["cluster", cluster < 0 ? "none" : T.clusters[cluster].name],
      ["regions", rois.join(", ") || "none"],
      [T.score, plain(tile.maps.score[v])],
      ["preferred level", plain(tile.maps.level[v])],
    ]),
    cluster < 0 ? null : el("p", null, el("button", { type: "button",
      on: { click: () => pick("cluster", cluster) } }, "Show its cluster")),
    overlayBox(),
    pictureRow("Strongest predicted",
      own ? "with its attention on each" : "Attention on single pictures is not in this "
        + "page; drawn is the mean over all pictures.", order, z, overlayOf, "top"),
    pictureRow("Weakest predicted", "", order.slice().reverse(), z, () => null, "bottom"),
    fieldOf ? [el("h3", null, "Receptive field"),
      fieldView(fieldOf.data, fieldOf.start, fieldOf.shape,
        { x: tile.maps.x[v], y: tile.maps.y[v], size: tile.maps.size[v] },
        `Receptive field of voxel ${tile.voxel[v]} of ${tile.name}`),
      el("p", { class: "small" }, "Mean attention over pictures; the cross is the middle "
        + "of the picture, the dashed circle the fitted centre and size."),
      factTable([
        ["centre", `${plain(tile.maps.x[v])} from the left, ${plain(tile.maps.y[v])} from above`],
        ["size", `${plain(tile.maps.size[v])} ${T.unit}`],
        ["eccentricity", `${plain(tile.maps.eccentricity[v])} ${T.unit}`],
        ["angle", degrees(tile.maps.angle[v])],
      ])] : null,
  ];
}

function showSeen() {
  const seen = byId("seen");
  seen.hidden = state.picture < 0;
  if (seen.hidden) {
    seen.replaceChildren();
    return;
  }
  const sums = T.clusters.map(() => [0, 0]);
  for (const tile of tiles) {
    for (let v = 0; v < tile.size; v++) {
      if (tile.cluster[v] < 0) continue;
      const sum = sums[tile.cluster[v]];
      sum[0] += responseTo(tile, v, state.picture);
      sum[1] += 1;
    }
  }
  const strongest = sums.map(([sum, n], k) => [k, n ? sum / n : -Infinity])
    .filter(([, mean]) => mean > -Infinity).sort((a, b) => b[1] - a[1]).slice(0, 5);
  seen.replaceChildren(
    el("img", { src: `data:image/jpeg;base64,${T.pictures[state.picture]}`,
      alt: `Picture ${T.ids[state.picture]}` }),
    el("div", null,
      el("h3", null, T.ids[state.picture]),
      strongest.length ? el("p", { class: "small" },
        "Clusters with the strongest predicted response, mean over shown voxels:") : null,
      el("ol", null, strongest.map(([k, mean]) => el("li", null,
        el("button", { type: "button", class: "link",
          on: { click: () => pick("cluster", k) } }, T.clusters[k].name),
        ` ${signed(mean)} z`))),
      el("button", { type: "button", id: "unpick",
        on: { click: () => pickPicture(-1) } }, "Back to the colours before")));
}

function showTab() {
  for (const kind of KINDS_OF_PICK) {
    const on = state.tab === kind;
    const tab = byId(`tab-${kind}`);
    tab.setAttribute("aria-selected", on ? "true" : "false");
    tab.tabIndex = on ? 0 : -1;
    byId(`panel-${kind}`).hidden = !on;
    if (kind === "voxel") continue;
    const option = setPicked(byId(`list-${kind}`), state.kind === kind ? state.index : -1);
    if (on && option && state.kind === kind) reveal(byId(`list-${kind}`), option);
  }
  if (state.kind === "voxel") {
    if (Number(byId("voxel-brain").value) !== state.brain) {
      byId("voxel-brain").value = state.brain;
      listVoxels();
    }
    byId("voxel-number").value = tiles[state.brain].voxel[state.index];
    byId("voxel-said").textContent = "";
  }
  const here = state.kind === "voxel" && state.brain === Number(byId("voxel-brain").value);
  setPicked(byId("list-voxel"), here ? state.index : -1);
  const shown = setPicked(byId("strip"), state.picture);
  if (state.picture >= 0) reveal(byId("strip"), shown);
}

// Scrolls a list, and the list alone, to an option.
function reveal(list, option) {
  const a = option.getBoundingClientRect(), b = list.getBoundingClientRect();
  if (a.top < b.top) list.scrollTop -= b.top - a.top;
  if (a.bottom > b.bottom) list.scrollTop += a.bottom - b.bottom;
  if (a.left < b.left) list.scrollLeft -= b.left - a.left;
  if (a.right > b.right) list.scrollLeft += a.right - b.right;
}

function listVoxels() {
  const tile = tiles[Number(byId("voxel-brain").value)];
  const best = [...tile.voxel.keys()].filter((v) => !Number.isNaN(tile.maps.score[v]))
    .sort((a, b) => tile.maps.score[b] - tile.maps.score[a] || a - b).slice(0, 30);
  byId("voxel-head").textContent = best.length
    ? `Best ${T.score} among those shown:` : "Scores are not known.";
  byId("list-voxel").replaceChildren(...best.map((v) => el("li",
    { role: "option", "data-index": v, tabindex: -1 },
    el("span", { class: "name" }, describe(tile, v, false)),
    el("span", { class: "size" }, plain(tile.maps.score[v])))));
  setPicked(byId("list-voxel"), -1);
}

function findVoxel(event) {
  event.preventDefault();
  const number = Number(byId("voxel-brain").value), tile = tiles[number];
  const wanted = Number(byId("voxel-number").value);
  const v = tile.voxel.indexOf(wanted);
  if (v >= 0) {
    pick("voxel", v, number);
    return;
  }
  if (!tile.size) {
    byId("voxel-said").textContent = `No voxel of ${tile.name} is shown.`;
    return;
  }
  let near = 0;
  for (let i = 1; i < tile.size; i++) {
    if (Math.abs(tile.voxel[i] - wanted) < Math.abs(tile.voxel[near] - wanted)) near = i;
  }
  byId("voxel-said").textContent = `Voxel ${wanted} is not among the `
    + `${count(tile.size)} shown; the nearest number is ${tile.voxel[near]}.`;
}

// ---- the address ------------------------------------------------------------------

let written = "";
function writeHash() {
  const parts = [];
  if (state.kind === "voxel") {
    parts.push(`voxel=${state.brain}.${tiles[state.brain].voxel[state.index]}`);
  } else if (state.kind) parts.push(`${state.kind}=${state.index}`);
  if (state.picture >= 0) parts.push(`picture=${state.picture}`);
  if (state.by !== "cluster") parts.push(`colour=${state.by}`);
  const turned = [view.azimuth, view.tilt, view.zoom].map((x) => +x.toFixed(2));
  if (turned.join() !== "0,0,1") parts.push(`view=${turned.join()}`);
  if (view.side !== "both") parts.push(`side=${view.side}`);
  const text = parts.length ? `#${parts.join("&")}` : "#";
  if (text === written) return;
  written = text;
  history.replaceState(null, "", text);
}

// What an address asks for; what cannot be is named and left out.
function readHash() {
  const wrong = [];
  const found = { kind: null, index: -1, brain: -1, picture: -1, by: null };
  const turned = { azimuth: 0, tilt: 0, zoom: 1, panX: 0, panY: 0, side: "both" };
  const whole = (text, below) =>
    (/^\d{1,9}$/.test(text) && Number(text) < below ? Number(text) : -1);
  for (const part of location.hash.slice(1).split("&")) {
    if (!part) continue;
    const [key, value = ""] = part.split("=");
    let good = false;
    if (key === "cluster" || key === "region") {
      const index = whole(value, groupsOf(key).length);
      good = index >= 0;
      if (good) Object.assign(found, { kind: key, index });
    } else if (key === "voxel") {
      const [brain, voxel = ""] = value.split(".");
      const b = whole(brain, tiles.length);
      const v = b < 0 || !/^\d{1,9}$/.test(voxel) ? -1 : tiles[b].voxel.indexOf(Number(voxel));
      good = v >= 0;
      if (good) Object.assign(found, { kind: "voxel", index: v, brain: b });
    } else if (key === "picture") {
      found.picture = whole(value, T.ids.length);
      good = found.picture >= 0;
    } else if (key === "colour") {
      good = MODES.some(([by]) => by === value);
      if (good) found.by = value;
    } else if (key === "view") {
      const numbers = value.split(",").map(Number);
      good = /^[-\d.,]{1,40}$/.test(value) && numbers.length === 3
        && numbers.every(Number.isFinite);
      if (good) {
        turned.azimuth = numbers[0] % 360;
        turned.tilt = Math.min(90, Math.max(-90, numbers[1]));
        turned.zoom = Math.min(12, Math.max(0.3, numbers[2]));
      }
    } else if (key === "side") {
      good = value === "0" || value === "1";
      if (good) turned.side = value;
    }
    if (!good) wrong.push(part.slice(0, 40));
  }
  if (found.by === null) found.by = found.picture >= 0 ? "predicted" : "cluster";
  Object.assign(view, turned);
  Object.assign(state, found, { before: found.by === "predicted" ? "cluster" : found.by });
  if (found.kind) state.tab = found.kind;
  return wrong;
}

function followHash() {
  if (location.hash === written || (location.hash === "" && written === "#")) return;
  const wrong = readHash();
  show();
  if (wrong.length) {
    byId("status").textContent += ` The address asks for ${wrong.join(", ")}, which is `
      + "not in this page.";
  }
}

// ---- all together -----------------------------------------------------------------

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

function turn(change) {
  Object.assign(view, change);
  view.azimuth = ((view.azimuth + 180) % 360 + 360) % 360 - 180;
  if (view.azimuth === -180) view.azimuth = 180;
  view.tilt = Math.min(90, Math.max(-90, view.tilt));
  view.zoom = Math.min(12, Math.max(0.3, view.zoom));
  showView();
  redraw();
}

// Browsers refuse addresses that change many times a second.
let settling = 0;
const settle = () => {
  clearTimeout(settling);
  settling = setTimeout(writeHash, 250);
};

function onBrainKey(event, tile) {
  const step = 10, move = event.shiftKey;
  const arrows = {
    ArrowLeft: move ? { panX: view.panX - 0.05 } : { azimuth: view.azimuth - step },
    ArrowRight: move ? { panX: view.panX + 0.05 } : { azimuth: view.azimuth + step },
    ArrowUp: move ? { panY: view.panY - 0.05 } : { tilt: view.tilt - step },
    ArrowDown: move ? { panY: view.panY + 0.05 } : { tilt: view.tilt + step },
    "+": { zoom: view.zoom * 1.2 }, "=": { zoom: view.zoom * 1.2 },
    "-": { zoom: view.zoom / 1.2 },
    Home: { azimuth: 0, tilt: 0, zoom: 1, panX: 0, panY: 0 },
  };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (arrows[event.key]) {
    turn(arrows[event.key]);
    settle();
  } else if (event.key === "Enter" || event.key === " ") {
    pickAt(tile, tile.buffer.width / 2, tile.buffer.height / 2, 0.25 * tile.buffer.width);
  } else return;
  event.preventDefault();
}

function pickAt(tile, x, y, reach) {
  const v = under(tile, x, y, reach);
  if (v >= 0) pick("voxel", v, tile.number);
  else byId("status").textContent = `No voxel of ${tile.name} there.`;
}

function listenToBrain(tile) {
  const { canvas } = tile;
  const onCanvas = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width,
      (event.clientY - box.top) * canvas.height / box.height];
  };
  let from = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = { x: event.clientX, y: event.clientY, moved: false, ...view };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from) {
      const v = under(tile, ...onCanvas(event), 2);
      tile.hover.textContent = v < 0 ? "" : describe(tile, v);
      return;
    }
    const dx = event.clientX - from.x, dy = event.clientY - from.y;
    if (!from.moved && Math.hypot(dx, dy) < 4) return;
    from.moved = true;
    if (event.shiftKey) {
      turn({ panX: from.panX + dx / canvas.clientWidth,
        panY: from.panY + dy / canvas.clientHeight });
    } else turn({ azimuth: from.azimuth + 0.5 * dx, tilt: from.tilt + 0.5 * dy });
  });
  canvas.addEventListener("pointerup", (event) => {
    const clicked = from && !from.moved;
    from = null;
    if (clicked) pickAt(tile, ...onCanvas(event), 5 * tile.ratio);
    else settle();
  });
  canvas.addEventListener("pointercancel", () => { from = null; });
  canvas.addEventListener("pointerleave", () => { tile.hover.textContent = ""; });
  canvas.addEventListener("wheel", (event) => {
    // Else the page could not be scrolled past the brains.
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    turn({ zoom: view.zoom * Math.exp(-0.0015 * event.deltaY) });
    settle();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => onBrainKey(event, tile));
}

function makeTile(about, number) {
  const name = (key) => (A[`brain${number}/${key}`] || { data: null }).data;
  const surface = about.kind === "surface";
  const size = name("voxel").length;
  const shown = `${count(size)} of ${count(about.total)} voxels shown`;
  const tile = {
    ...about, number, surface, size,
    position: name("position"), voxel: name("voxel"), cluster: name("cluster"),
    region: name("region"), predicted: name("predicted"), scale: name("scale"),
    maps: Object.fromEntries(["score", "x", "y", "size", "eccentricity", "angle", "level"]
      .map((key) => [key, name(key)])),
    field: A[`brain${number}/field`], attention: A[`brain${number}/attention`],
    rgb: new Uint8Array(3 * size), marked: new Uint8Array(size), numMarked: 0,
    owner: null,
    reach: size < about.total ? Math.min(2, Math.ceil(Math.sqrt(about.total / size))) : 0,
  };
  if (!surface) {
    tile.box = frame(tile.position);
    tile.gap = spacing(tile.position);
    tile.box.far += tile.gap; // room for the balls
    tile.box.wide += tile.gap;
  }
  tile.canvas = el("canvas", {
    tabindex: 0, role: "application", "aria-roledescription": "brain",
    "aria-label": `${about.name}, ${shown}. Arrow keys turn, plus and minus zoom, `
      + "Enter picks the voxel in the middle.",
  });
  tile.said = el("span", { class: "said" });
  tile.hover = el("p", { class: "hover" });
  tile.figure = el("figure", { class: "brain" }, tile.canvas, tile.hover,
    el("figcaption", null,
      el("p", { class: "who" }, el("strong", null, about.name), tile.said),
      el("p", { class: "space" }, `${about.space} · ${shown}`)));
  listenToBrain(tile);
  return tile;
}

function build() {
  document.title = T.title;
  byId("title").textContent = T.title;
  byId("lead").textContent = T.lead;
  byId("warnings").append(...T.warnings.map((w) => el("p", { class: "warning" }, w)));
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
