// Predictions in the browser: one network with a mask, and the same network folded for the channels that are on
import * as ort from './ort/ort.wasm.min.mjs'
const here = new URL('.', import.meta.url)
ort.env.wasm.wasmPaths = new URL('ort/', here).href
ort.env.wasm.numThreads = 1

const root = document.getElementById('live')
const say = text => { root.querySelector('[role=status]').textContent = text }
const about = await (await fetch(new URL('live.json', here))).json()
const { size, classes, pictures } = about, n = pictures.length, area = size * size, names = ['R', 'G', 'B']
const open = name => ort.InferenceSession.create(new URL(`${name}.onnx`, here).href)
const sessions = { mask: await open('mask') }

// Pixels of all pictures, decoded once: n x 3 x area, 0 to 255
const pixels = new Uint8Array(n * 3 * area)
for (const [i, p] of pictures.entries()) {
  const image = await createImageBitmap(await (await fetch('data:image/png;base64,' + p.png)).blob(), { colorSpaceConversion: 'none' })
  const c = new OffscreenCanvas(size, size).getContext('2d')
  c.drawImage(image, 0, 0)
  const rgba = c.getImageData(0, 0, size, size).data
  for (let k = 0; k < 3; k++) for (let j = 0; j < area; j++) pixels[(i * 3 + k) * area + j] = rgba[4 * j + k]
}

const grid = root.querySelector('.pictures')
const cards = pictures.map(p => {
  const f = document.createElement('figure'), c = document.createElement('canvas'), t = document.createElement('figcaption')
  c.width = c.height = size
  c.setAttribute('role', 'img')
  f.append(c, t)
  grid.append(f)
  return { c, t }
})

function batch(on, all) {           // normalised pictures; absent channels are left out, or zero where all channels are there
  const keep = all ? [0, 1, 2] : on, x = new Float32Array(n * keep.length * area)
  for (let i = 0; i < n; i++) keep.forEach((k, at) => {
    if (!on.includes(k)) return
    for (let j = 0; j < area; j++) x[(i * keep.length + at) * area + j] = (pixels[(i * 3 + k) * area + j] / 255 - about.mean[k]) / about.std[k]
  })
  return new ort.Tensor('float32', x, [n, keep.length, size, size])
}

const softmax = v => { const m = Math.max(...v), e = v.map(o => Math.exp(o - m)), s = e.reduce((a, b) => a + b); return e.map(o => o / s) }
const rows = t => Array.from({ length: n }, (_, i) => [...t.data.slice(i * classes.length, (i + 1) * classes.length)])

async function show() {
  const boxes = [...root.querySelectorAll('input')], on = [0, 1, 2].filter(k => boxes[k].checked), set = on.map(k => names[k]).join('')
  boxes.forEach(b => { b.disabled = on.length == 1 && b.checked })
  sessions[set] ??= await open(set)
  const mask = new ort.Tensor('bool', Array.from({ length: 3 * n }, (_, i) => on.includes(i % 3)), [n, 3])
  const start = performance.now()
  const one = rows((await sessions.mask.run({ x: batch(on, true), mask })).logits), between = performance.now()
  const folded = rows((await sessions[set].run({ x: batch(on, false) })).logits), end = performance.now()
  let right = 0, gap = 0
  cards.forEach(({ c, t }, i) => {
    const g = c.getContext('2d'), im = g.createImageData(size, size)
    for (let j = 0; j < area; j++) { for (let k = 0; k < 3; k++) im.data[4 * j + k] = on.includes(k) ? pixels[(i * 3 + k) * area + j] : 0; im.data[4 * j + 3] = 255 }
    g.putImageData(im, 0, 0)
    const p = softmax(one[i]), best = p.indexOf(Math.max(...p)), ok = best == pictures[i].label
    right += ok
    one[i].forEach((v, k) => { gap = Math.max(gap, Math.abs(v - folded[i][k])) })
    t.textContent = `${ok ? '✓' : '✗'} ${classes[best]}, ${Math.round(100 * p[best])}\u00a0%`
    c.setAttribute('aria-label', `${classes[pictures[i].label]}, seen in ${set}; predicted ${classes[best]}`)
  })
  say(`${set}: ${right} of ${n} right (${(100 * about.accuracy[set]).toFixed(1)} % of ${about.n_test.toLocaleString('en')} test pictures). Largest difference to the folded network ${gap.toExponential(0)}; ${(between - start).toFixed(1)} ms with a mask, ${(end - between).toFixed(1)} ms folded.`)
  root.dataset.state = set
}

root.querySelectorAll('input').forEach(b => { b.onchange = show })
await show()
