// The address holds what is picked, so that a view can be sent.

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
  try {
    history.replaceState(null, "", text);
  } catch {
    // Safari refuses more than 100 changes in 30 s; the page itself needs no address.
  }
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
