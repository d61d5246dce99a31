// The brains: drawn, turned and clicked.

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
