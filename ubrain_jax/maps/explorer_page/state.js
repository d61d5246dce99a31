// What the page knows, and what is picked.

const MODES = [
  ["cluster", "cluster"], ["selected", "picked or not"], ["score", "score"],
  ["eccentricity", "eccentricity of the field"], ["angle", "angle of the field"],
  ["size", "size of the field"], ["level", "preferred level"],
  ["predicted", "predicted response"],
];
const KINDS_OF_PICK = ["cluster", "region", "voxel"];
const NUM_SHOWN = 8; // pictures in a row of the details
const NUM_OPEN = 3; // warnings that are not folded
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
