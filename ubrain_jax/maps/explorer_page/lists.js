// The lists from which one picks.

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
