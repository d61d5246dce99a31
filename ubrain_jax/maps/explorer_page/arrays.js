// Reads the texts and the packed arrays of the page.

const KINDS = {
  float32: Float32Array, int32: Int32Array, int16: Int16Array, int8: Int8Array,
  uint16: Uint16Array, uint8: Uint8Array,
};

const byId = (id) => document.getElementById(id);

const take = (id) => {
  const element = byId(id);
  const text = element.textContent;
  element.remove(); // the decoded copy is enough
  return text;
};

// Name -> {data, shape}, views into one buffer.
async function unpack(table, packed) {
  const coded = atob(packed);
  const bytes = new Uint8Array(coded.length);
  for (let i = 0; i < coded.length; i++) bytes[i] = coded.charCodeAt(i);
  const stream = new Blob([bytes]).stream();
  const plain = stream.pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(plain).arrayBuffer();
  const arrays = {};
  for (const [name, [kind, shape, place]] of Object.entries(table)) {
    const size = shape.reduce((a, b) => a * b, 1);
    arrays[name] = { data: new KINDS[kind](buffer, place, size), shape };
  }
  return arrays;
}

const count = (n) => n.toLocaleString("en-US");

const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

const plain = (x) => (Number.isNaN(x) ? "unknown" : x.toFixed(2).replace("-", "−"));
