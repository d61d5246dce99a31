// What is picked, in words, tables and pictures.

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
  // No picture among the strongest and the weakest.
  const few = order.slice(0, Math.min(NUM_SHOWN, Math.ceil(order.length / 2)));
  const last = order.slice(Math.max(few.length, order.length - NUM_SHOWN)).reverse();
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
        + "page; drawn is the mean over all pictures.", few, z, overlayOf, "top"),
    pictureRow("Weakest predicted", "", last, z, () => null, "bottom"),
    fieldOf ? [el("h3", null, "Receptive field"),
      fieldView(fieldOf.data, fieldOf.start, fieldOf.shape,
        { x: tile.maps.x[v], y: tile.maps.y[v], size: tile.maps.size[v] / T.width },
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
