// Elements of the page. Whatever comes from data becomes text, never markup.

function el(tag, options, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "on") {
      for (const [kind, act] of Object.entries(value)) element.addEventListener(kind, act);
    } else if (name === "style") Object.assign(element.style, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

const factTable = (rows) => el("table", { class: "facts" },
  el("tbody", null, rows.map(([label, text]) =>
    el("tr", null, el("th", { scope: "row" }, label), el("td", null, text)))));

function textTable(head, rows, label) {
  return el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": label },
    el("table", null,
      el("thead", null, el("tr", null, head.map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", null, rows.map((row) => el("tr", null, row.map((cell, k) =>
        k ? el("td", null, cell) : el("th", { scope: "row" }, cell)))))));
}

// (side, side) bytes as a picture whose opacity grows with attention.
function heat(data, start, shape, opaque) {
  const [rows, columns] = shape;
  const small = el("canvas", { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i++) {
    const x = data[start + i] / 255;
    const colour = opaque
      ? [255 * Math.min(1, 1.6 * x), 255 * x ** 1.4, 255 * (0.12 + 0.25 * x * x)]
      : [255, 235 * x * x + 20, 30];
    image.data.set([...colour, opaque ? 255 : 235 * x ** 0.8], 4 * i);
  }
  small.getContext("2d").putImageData(image, 0, 0);
  return small;
}

// A field of view with a cross in its middle; `mark` is {x, y, size}, fractions.
function fieldView(data, start, shape, mark, label) {
  const px = 168;
  const canvas = el("canvas", { width: px, height: px, class: "field", role: "img",
    "aria-label": label });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.drawImage(heat(data, start, shape, true), 0, 0, px, px);
  context.strokeStyle = "#ffffff";
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(px / 2 - 8, px / 2 + 0.5);
  context.lineTo(px / 2 + 9, px / 2 + 0.5);
  context.moveTo(px / 2 + 0.5, px / 2 - 8);
  context.lineTo(px / 2 + 0.5, px / 2 + 9);
  context.stroke();
  if (mark && !Number.isNaN(mark.x) && !Number.isNaN(mark.y)) {
    context.setLineDash([4, 3]);
    context.lineWidth = 1.5;
    context.beginPath();
    const radius = Number.isNaN(mark.size) ? 0.03 : mark.size;
    context.arc(mark.x * px, mark.y * px, Math.max(3, radius * px), 0, 2 * Math.PI);
    context.stroke();
  }
  return canvas;
}

// A list along which arrow keys go; Enter, Space or a click pick.
function listbox(list, pick) {
  const options = () => [...list.children].filter((option) => !option.hidden);
  const focus = (option) => {
    for (const other of list.children) other.tabIndex = other === option ? 0 : -1;
    option.focus();
  };
  list.addEventListener("keydown", (event) => {
    const all = options(), now = all.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const next = step ? now + step
      : event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : null;
    if (next !== null) {
      if (all[next]) focus(all[next]);
      event.preventDefault();
    } else if ((event.key === "Enter" || event.key === " ") && now >= 0) {
      pick(Number(all[now].dataset.index));
      event.preventDefault();
    }
  });
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) pick(Number(option.dataset.index));
  });
}

// Shows which option is picked (-1: none), and makes one reachable by Tab.
function setPicked(list, index) {
  let reachable = null;
  for (const option of list.children) {
    const picked = Number(option.dataset.index) === index;
    option.setAttribute("aria-selected", picked ? "true" : "false");
    option.tabIndex = -1;
    if (picked || (!reachable && !option.hidden)) reachable = option;
  }
  if (reachable) reachable.tabIndex = 0;
  return reachable;
}

function search(input, list) {
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const option of list.children) {
      const name = option.querySelector(".name").textContent; // not its number of voxels
      option.hidden = !name.toLowerCase().includes(wanted);
    }
    const shown = [...list.children].filter((option) => !option.hidden);
    for (const option of list.children) option.tabIndex = option === shown[0] ? 0 : -1;
  });
}
