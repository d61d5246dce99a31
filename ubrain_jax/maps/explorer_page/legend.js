// Colours of voxels under each choice, and the legend that says what they mean.

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
