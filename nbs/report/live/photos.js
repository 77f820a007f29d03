// A picture of the reader's, in the browser: what the network is given, what it sees, and what it takes it for. Nothing is sent anywhere.
import * as ort from './ort/ort.wasm.min.mjs'
const here = new URL('.', import.meta.url)
ort.env.wasm.wasmPaths = new URL('ort/', here).href
ort.env.wasm.numThreads = 1

const root = document.getElementById('photos'), part = name => root.querySelector(name)
const say = text => { part('[role=status]').textContent = text }
const about = await (await fetch(new URL('photos.json', here))).json()
const { size, classes, mean, std } = about, area = size * size, names = ['R', 'G', 'B']
const session = await ort.InferenceSession.create(new URL('photos.onnx', here).href)
const [given, seen] = root.querySelectorAll('canvas'), boxes = [...root.querySelectorAll('[type=checkbox]')], video = part('video')
for (const c of [given, seen]) c.width = c.height = size
const trained = `It was trained for ${about.epochs} epochs.`
let pixels                                 // of the picture, size x size, RGBA

function take(image, w, h) {               // the square in the middle, at the network's size, smoothed as a thumbnail is
  const c = new OffscreenCanvas(size, size).getContext('2d', { willReadFrequently: true }), side = Math.min(w, h)
  let source = image, [x, y, s] = [(w - side) / 2, (h - side) / 2, side]
  while (s >= 2 * size) {                  // by halves, so that no pixel is left out
    const half = new OffscreenCanvas(s / 2, s / 2), g = half.getContext('2d')
    g.imageSmoothingQuality = 'high'
    g.drawImage(source, x, y, s, s, 0, 0, half.width, half.height)
    ;[source, x, y, s] = [half, 0, 0, half.width]
  }
  c.imageSmoothingQuality = 'high'
  c.drawImage(source, x, y, s, s, 0, 0, size, size)
  pixels = c.getImageData(0, 0, size, size).data
}

function draw(canvas, value) {             // value(channel, pixel), from 0 to 255
  const g = canvas.getContext('2d'), im = g.createImageData(size, size)
  for (let j = 0; j < area; j++) { for (let k = 0; k < 3; k++) im.data[4 * j + k] = value(k, j); im.data[4 * j + 3] = 255 }
  g.putImageData(im, 0, 0)
}

const softmax = v => { const m = Math.max(...v), e = v.map(o => Math.exp(o - m)), s = e.reduce((a, b) => a + b); return e.map(o => o / s) }

let turn = Promise.resolve(), shown = 0
const show = () => turn = turn.then(look)          // one picture at a time
async function look() {
  const on = [0, 1, 2].filter(k => boxes[k].checked), set = on.map(k => names[k]).join(''), P = about.sees[set]
  boxes.forEach(b => { b.disabled = on.length == 1 && b.checked })
  if (!pixels) return
  const x = new Float32Array(3 * area)     // normalised; what is absent stays zero and is never read
  for (const k of on) for (let j = 0; j < area; j++) x[k * area + j] = (pixels[4 * j + k] / 255 - mean[k]) / std[k]
  draw(given, (k, j) => on.includes(k) ? pixels[4 * j + k] : 0)
  draw(seen, (k, j) => 255 * (mean[k] + std[k] * on.reduce((sum, c) => sum + P[k][c] * x[c * area + j], 0)))
  const mask = new ort.Tensor('bool', names.map((_, k) => on.includes(k)), [1, 3]), input = new ort.Tensor('float32', x, [1, 3, size, size])
  const start = performance.now(), { logits } = await session.run({ x: input, mask }), ms = performance.now() - start
  const p = softmax([...logits.data]), best = p.map((_, i) => i).sort((a, b) => p[b] - p[a]).slice(0, 5)
  part('ol').replaceChildren(...best.map(i => {
    const li = document.createElement('li'), bar = document.createElement('meter')
    bar.value = p[i]
    bar.setAttribute('aria-label', classes[i])
    li.append(bar, ` ${classes[i]}, ${(100 * p[i]).toFixed(0)}\u00a0%`)
    return li
  }))
  given.setAttribute('aria-label', `Your picture in ${set}`)
  seen.setAttribute('aria-label', `The same, with absent channels filled in`)
  const right = k => `${(100 * about[k][set]).toFixed(0)} %`
  say(`${set}: ${classes[best[0]]}, in ${ms.toFixed(1)} ms. On ${about.n_test.toLocaleString('en')} test pictures the network is right in ${right('top1')} of cases, and the right class is among its five best in ${right('top5')}. ${trained}`)
  root.dataset.state = `${set} ${++shown}`
}

async function open(file) {
  try {
    const image = await createImageBitmap(file)
    take(image, image.width, image.height)
  } catch { return say(`${file.name ?? 'This'} is not a picture that this browser can read.`) }
  await show()
}

part('[type=file]').onchange = e => { if (e.target.files[0]) open(e.target.files[0]) }
root.ondragover = e => { e.preventDefault(); root.classList.add('over') }
root.ondragleave = () => root.classList.remove('over')
root.ondrop = e => { e.preventDefault(); root.classList.remove('over'); if (e.dataTransfer.files[0]) open(e.dataTransfer.files[0]) }
boxes.forEach(b => { b.onchange = show })

let stream, watching = false
part('button').onclick = async e => {
  if (stream) {
    watching = false
    stream.getTracks().forEach(t => t.stop())
    stream = undefined
    e.target.textContent = 'Use the camera'
    return
  }
  try { stream = await navigator.mediaDevices.getUserMedia({ video: { width: 320, height: 240 } }) }
  catch { return say('There is no camera, or the browser was not allowed to use it.') }
  video.srcObject = stream
  await video.play()
  e.target.textContent = 'Stop the camera'
  watching = true
  while (watching) {
    take(video, video.videoWidth, video.videoHeight)
    await show()
    await new Promise(done => setTimeout(done, 300))
  }
}
say(`Choose a picture, drop one here, or use the camera. The network knows ${classes.length} classes. ${trained}`)
root.dataset.state = 'ready'
