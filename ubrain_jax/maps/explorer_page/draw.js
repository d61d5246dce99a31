// A small rasteriser: surfaces and balls with a depth buffer, and what lies under a
// pixel. Orthographic: x to the right, y to the front, z up, seen from behind.

const BACKGROUND = [19, 22, 27];
const CORTEX = [[158, 160, 164], [116, 119, 124]]; // gyrus, sulcus
const OUTLINE = 0xffffffff;
const NOWHERE = -1e9;

const packed = (r, g, b) => (255 << 24) | (b << 16) | (g << 8) | r;

// Rows: to the right, up and towards the viewer.
function axesOf(view) {
  const azimuth = (view.azimuth * Math.PI) / 180;
  const tilt = (view.tilt * Math.PI) / 180;
  const [ca, sa] = [Math.cos(azimuth), Math.sin(azimuth)];
  const [ct, st] = [Math.cos(tilt), Math.sin(tilt)];
  return [
    [ca, -sa, 0],
    [sa * st, ca * st, ct],
    [-sa * ct, -ca * ct, st],
  ];
}

// Middle of a box around points (n, 3), the distance of the farthest from it, and from
// the upright axis through it.
function frame(points, chosen) {
  const low = [Infinity, Infinity, Infinity];
  const high = low.map((x) => -x);
  for (let i = 0; i < points.length; i++) {
    if (chosen && !chosen(i / 3 | 0)) continue;
    const d = i % 3;
    if (points[i] < low[d]) low[d] = points[i];
    if (points[i] > high[d]) high[d] = points[i];
  }
  const middle = low.map((x, d) => (x + high[d]) / 2 || 0);
  let far = 0, wide = 0;
  for (let i = 0; i < points.length; i += 3) {
    if (chosen && !chosen(i / 3)) continue;
    const [x, y, z] = [0, 1, 2].map((d) => points[i + d] - middle[d]);
    far = Math.max(far, Math.hypot(x, y, z));
    wide = Math.max(wide, Math.hypot(x, y));
  }
  return { middle, far: far || 1, wide: wide || 1 };
}

// Where points are on a canvas: (n) pixels from the left and top, and nearness.
function project(points, box, view, width, height) {
  const [right, up, near] = axesOf(view);
  // Whole from every side; some corners may leave the frame when seen from above.
  const scale = view.zoom * Math.min((0.47 * width) / box.wide, (0.6 * height) / box.far);
  const [mx, my, mz] = box.middle;
  const n = points.length / 3;
  const at = {
    scale, x: new Float32Array(n), y: new Float32Array(n), z: new Float32Array(n),
  };
  const ox = width / 2 + view.panX * width;
  const oy = height / 2 + view.panY * height;
  for (let i = 0; i < n; i++) {
    const x = points[3 * i] - mx, y = points[3 * i + 1] - my, z = points[3 * i + 2] - mz;
    at.x[i] = ox + scale * (right[0] * x + right[1] * y);
    at.y[i] = oy - scale * (up[0] * x + up[1] * y + up[2] * z);
    at.z[i] = scale * (near[0] * x + near[1] * y + near[2] * z);
  }
  return at;
}

function buffers(width, height) {
  return {
    width, height, what: new Int32Array(width * height),
    light: new Uint8Array(width * height), depth: new Float32Array(width * height),
  };
}

// Normals of vertices, neighbours by edges, and both hemispheres side by side.
function makeMesh(arrays) {
  const faces = arrays["mesh/faces"].data;
  const vertices = Float32Array.from(arrays["mesh/vertices"].data, (x) => x / 100);
  const half = vertices.length / 6;
  let [innerLeft, innerRight] = [-Infinity, Infinity];
  for (let i = 0; i < half; i++) {
    innerLeft = Math.max(innerLeft, vertices[3 * i]);
    innerRight = Math.min(innerRight, vertices[3 * (half + i)]);
  }
  for (let i = 0; i < half; i++) {
    vertices[3 * i] -= innerLeft + 3;
    vertices[3 * (half + i)] -= innerRight - 3;
  }
  const normals = new Float32Array(vertices.length);
  for (let f = 0; f < faces.length; f += 3) {
    const [a, b, c] = [3 * faces[f], 3 * faces[f + 1], 3 * faces[f + 2]];
    const u = [0, 1, 2].map((d) => vertices[b + d] - vertices[a + d]);
    const v = [0, 1, 2].map((d) => vertices[c + d] - vertices[a + d]);
    for (let d = 0; d < 3; d++) {
      const e = (d + 1) % 3, g = (d + 2) % 3;
      const n = u[e] * v[g] - u[g] * v[e];
      normals[a + d] += n;
      normals[b + d] += n;
      normals[c + d] += n;
    }
  }
  for (let i = 0; i < normals.length; i += 3) {
    const length = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
    for (let d = 0; d < 3; d++) normals[i + d] /= length;
  }
  const boxes = {
    both: frame(vertices), 0: frame(vertices, (i) => i < half),
    1: frame(vertices, (i) => i >= half),
  };
  return { vertices, faces, normals, half, boxes, sulc: arrays["mesh/sulc"].data };
}

// Fills `buffer.what` with vertices: each pixel has the nearest corner of its triangle.
function drawMesh(mesh, view, buffer) {
  const { width, height, what, light, depth } = buffer;
  what.fill(-1);
  depth.fill(NOWHERE);
  const at = project(mesh.vertices, mesh.boxes[view.side], view, width, height);
  const { x: px, y: py, z: pz } = at;
  const [right, up, near] = axesOf(view);
  const [lx, ly, lz] = [0, 1, 2].map((d) => -0.25 * right[d] + 0.45 * up[d] + 0.86 * near[d]);
  const { faces, normals } = mesh;
  const shade = new Float32Array(px.length);
  for (let i = 0; i < shade.length; i++) {
    const dot = normals[3 * i] * lx + normals[3 * i + 1] * ly + normals[3 * i + 2] * lz;
    shade[i] = 85 + 170 * Math.max(0, dot);
  }
  const first = view.side === "1" ? faces.length / 2 : 0;
  const last = view.side === "0" ? faces.length / 2 : faces.length;
  for (let f = first; f < last; f += 3) {
    const a = faces[f], b = faces[f + 1], c = faces[f + 2];
    const ax = px[a], ay = py[a], bx = px[b], by = py[b], cx = px[c], cy = py[c];
    const area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax);
    if (area >= 0) continue; // seen from inside
    const x0 = Math.max(0, Math.ceil(Math.min(ax, bx, cx)));
    const x1 = Math.min(width - 1, Math.floor(Math.max(ax, bx, cx)));
    const y0 = Math.max(0, Math.ceil(Math.min(ay, by, cy)));
    const y1 = Math.min(height - 1, Math.floor(Math.max(ay, by, cy)));
    for (let y = y0; y <= y1; y++) {
      for (let x = x0; x <= x1; x++) {
        const u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area;
        const v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area;
        const w = 1 - u - v;
        if (u < 0 || v < 0 || w < 0) continue;
        const k = y * width + x;
        const z = u * pz[a] + v * pz[b] + w * pz[c];
        if (z <= depth[k]) continue;
        depth[k] = z;
        what[k] = u >= v && u >= w ? a : v >= w ? b : c;
        light[k] = u * shade[a] + v * shade[b] + w * shade[c];
      }
    }
  }
  at.radius = 1.8 * at.scale; // half the distance of two vertices, in pixels
  return at;
}

// Discs of lit balls, by radius in half pixels.
const balls = new Map();

function ball(radius) {
  const key = Math.max(2, Math.round(2 * radius));
  if (!balls.has(key)) {
    const r = key / 2, found = [];
    for (let y = -Math.ceil(r); y <= r; y++) {
      for (let x = -Math.ceil(r); x <= r; x++) {
        const left = r * r - x * x - y * y;
        if (left < 0) continue;
        const z = Math.sqrt(left);
        const dot = (-0.25 * x - 0.45 * y + 0.86 * z) / r;
        found.push(x, y, z, 0.45 + 0.55 * Math.max(0, dot));
      }
    }
    balls.set(key, Float32Array.from(found));
  }
  return balls.get(key);
}

// Middle distance of a voxel to its nearest neighbour, from some of them.
function spacing(points) {
  const n = points.length / 3, step = Math.max(1, Math.floor(n / 100)), found = [];
  for (let i = 0; i < n; i += step) {
    let least = Infinity;
    for (let j = 0; j < n; j++) {
      const d = (points[3 * i] - points[3 * j]) ** 2
        + (points[3 * i + 1] - points[3 * j + 1]) ** 2
        + (points[3 * i + 2] - points[3 * j + 2]) ** 2;
      if (d > 0 && d < least) least = d;
    }
    found.push(Math.sqrt(least));
  }
  found.sort((a, b) => a - b);
  const middle = found[found.length >> 1];
  return Number.isFinite(middle) ? middle : 1;
}

// Fills `buffer.what` with voxels. Where a group is picked its voxels come to the front
// and the others shrink, as in a glass brain.
function drawPoints(points, box, gap, marked, isGroup, view, buffer) {
  const { width, height, what, light, depth } = buffer;
  what.fill(-1);
  depth.fill(NOWHERE);
  const at = project(points, box, view, width, height);
  const plainRadius = Math.min(Math.max(0.62 * gap * at.scale, 1.5), 0.1 * width);
  const plainBall = ball(isGroup ? 0.4 * plainRadius : plainRadius);
  const markedBall = ball(1.1 * plainRadius + 0.5);
  const reach = box.far * at.scale;
  for (let i = 0; i < at.x.length; i++) {
    const disc = marked[i] ? markedBall : plainBall;
    const cx = Math.round(at.x[i]), cy = Math.round(at.y[i]);
    const lift = isGroup && marked[i] ? 4 * reach : 0;
    const fog = 255 * (0.72 + 0.28 * (at.z[i] / reach));
    for (let j = 0; j < disc.length; j += 4) {
      const x = cx + disc[j], y = cy + disc[j + 1];
      if (x < 0 || y < 0 || x >= width || y >= height) continue;
      const k = y * width + x;
      const z = at.z[i] + disc[j + 2] + lift;
      if (z <= depth[k]) continue;
      depth[k] = z;
      what[k] = i;
      light[k] = fog * disc[j + 3];
    }
  }
  at.radius = plainRadius;
  return at;
}

// Which voxel a vertex shows: a marked one first. Where voxels were left out, vertices
// up to `reach` edges away show the nearest.
function ownersOf(mesh, position, marked, reach) {
  const owner = new Int32Array(mesh.vertices.length / 3).fill(-1);
  const n = marked.length;
  for (const wanted of [0, 1]) {
    for (let i = n - 1; i >= 0; i--) {
      if (marked[i] !== wanted) continue;
      owner[position[3 * i] * mesh.half + position[3 * i + 1]] = i;
    }
  }
  const { faces } = mesh;
  for (let step = 0; step < reach; step++) {
    const before = owner.slice();
    for (let f = 0; f < faces.length; f++) {
      const a = faces[f], b = faces[f % 3 === 2 ? f - 2 : f + 1];
      if (before[a] < 0 && before[b] >= 0) owner[a] = before[b];
      if (before[b] < 0 && before[a] >= 0) owner[b] = before[a];
    }
  }
  return owner;
}

// Colours pixels. `owner` turns what is under a pixel into a voxel (null: it is one);
// unmarked voxels keep `dim` of their light, and `faded` ones lose colour; marked ones
// get an outline where there is room for it.
function paint(pixels, buffer, owner, sulc, rgb, marked, dim, faded, outlined) {
  const { width, what, light } = buffer;
  const none = packed(...BACKGROUND);
  const markAt = (k) => {
    const w = what[k];
    if (w === undefined || w < 0) return 0;
    const v = owner ? owner[w] : w;
    return v < 0 ? 0 : marked[v];
  };
  for (let k = 0; k < what.length; k++) {
    const w = what[k];
    if (w < 0) {
      pixels[k] = none;
      continue;
    }
    const v = owner ? owner[w] : w;
    let shine = light[k] / 255;
    if (v < 0) {
      const grey = CORTEX[sulc[w]];
      if (dim < 1) shine *= 0.75;
      pixels[k] = packed(grey[0] * shine, grey[1] * shine, grey[2] * shine);
      continue;
    }
    let r = rgb[3 * v], g = rgb[3 * v + 1], b = rgb[3 * v + 2];
    if (marked[v]) {
      if (outlined && !(markAt(k + 1) && markAt(k - 1) && markAt(k + width)
        && markAt(k - width))) {
        pixels[k] = OUTLINE;
        continue;
      }
      shine = 0.4 + 0.6 * shine;
    } else if (dim < 1) {
      shine *= dim;
      if (faded) {
        const grey = 0.7 * (0.3 * r + 0.6 * g + 0.1 * b);
        r = 0.3 * r + grey;
        g = 0.3 * g + grey;
        b = 0.3 * b + grey;
      }
    }
    pixels[k] = packed(r * shine, g * shine, b * shine);
  }
}

// Three arrows at the lower left that say where the view is from.
function drawAxes(context, names, view, width, height, ratio) {
  const [right, up] = axesOf(view);
  const length = 15 * ratio, x0 = 30 * ratio, y0 = height - 30 * ratio;
  context.fillStyle = "rgb(19 22 27 / 60%)";
  context.beginPath();
  context.arc(x0, y0, 1.9 * length, 0, 2 * Math.PI);
  context.fill();
  context.lineWidth = ratio;
  context.font = `${11 * ratio}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let d = 0; d < 3; d++) {
    const x = right[d] * length, y = -up[d] * length;
    if (Math.hypot(x, y) < 3 * ratio) continue;
    context.strokeStyle = "#8d96a3";
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x0 + x, y0 + y);
    context.stroke();
    context.fillStyle = "#d5dae0";
    context.fillText(names[d], x0 + 1.45 * x, y0 + 1.45 * y);
  }
}
