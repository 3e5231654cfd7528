// @ts-check
/** What is painted, as pixels: a layer of the mask and one of the sketch's colours, each of the picture's size. */
import { bounds } from './geometry.js'

/** @typedef {import('./state.js').Stroke} Stroke */
/** @typedef {import('./geometry.js').Size} Size */
/** @typedef {{ x: number, y: number, png: string }} Patch  PNG in base64, and where it lies */

export const TINT = '#ff4fa0'

export class Layers {
  /** @param {() => HTMLCanvasElement} create */
  constructor(create = () => document.createElement('canvas')) {
    this.mask = create()
    this.sketch = create()
    this.part = create() // what is cut out of them
  }

  /**
   * All strokes anew; the canvases are the same from stroke to stroke.
   * @param {readonly Stroke[]} strokes
   * @param {Size} size
   */
  paint(strokes, size) {
    for (const layer of [this.mask, this.sketch]) {
      layer.width = size.width
      layer.height = size.height
    }
    for (const stroke of strokes) this.add(stroke)
  }

  /**
   * A stroke from one of its points on.
   * @param {Stroke} stroke
   * @param {number} [from]
   */
  add(stroke, from = 0) {
    draw(this.mask, stroke, TINT, from)
    if (stroke.colour || stroke.erase) draw(this.sketch, stroke, stroke.colour ?? TINT, from)
  }

  /**
   * What the server gets of the mask, cut to what is painted.
   * @param {readonly Stroke[]} strokes
   * @returns {Patch | undefined}
   */
  maskPatch(strokes) {
    return cut(this.mask, this.part, bounds(strokes, this.mask))
  }

  /**
   * @param {readonly Stroke[]} strokes
   * @returns {Patch | undefined}
   */
  sketchPatch(strokes) {
    return cut(this.sketch, this.part, bounds(strokes.filter((stroke) => stroke.colour), this.sketch))
  }
}

/**
 * @param {HTMLCanvasElement} layer
 * @param {Stroke} stroke
 * @param {string} colour
 * @param {number} from
 */
function draw(layer, { size, points, widths, erase, box }, colour, from) {
  const context = /** @type {CanvasRenderingContext2D} */ (layer.getContext('2d'))
  context.globalCompositeOperation = erase ? 'destination-out' : 'source-over'
  context.fillStyle = context.strokeStyle = colour
  context.lineCap = context.lineJoin = 'round'
  if (box) context.fillRect(box[0], box[1], box[2], box[3])
  const width = (/** @type {number} */ i) => widths?.[i] ?? size
  for (let i = from; i < points.length / 2; i++) {
    const [x, y] = points.slice(2 * i, 2 * i + 2)
    const [px, py] = i ? points.slice(2 * i - 2, 2 * i) : [x, y]
    context.beginPath()
    context.lineWidth = width(i)
    context.moveTo(px, py)
    context.lineTo(x, y)
    context.stroke()
    if (x === px && y === py) context.fill(disc(x, y, width(i) / 2))
  }
}

/** @type {(x: number, y: number, radius: number) => Path2D} */
function disc(x, y, radius) {
  const path = new Path2D()
  path.arc(x, y, radius, 0, 2 * Math.PI)
  return path
}

/**
 * @param {HTMLCanvasElement} layer
 * @param {HTMLCanvasElement} part
 * @param {[number, number, number, number] | undefined} box
 * @returns {Patch | undefined} none where everything was erased again
 */
function cut(layer, part, box) {
  if (!box) return undefined
  const [x, y, width, height] = box
  Object.assign(part, { width, height })
  const context = /** @type {CanvasRenderingContext2D} */ (part.getContext('2d', { willReadFrequently: true }))
  context.drawImage(layer, -x, -y)
  if (!context.getImageData(0, 0, width, height).data.some((value, i) => i % 4 === 3 && value > 127)) return undefined
  return { x, y, png: part.toDataURL('image/png').split(',')[1] }
}
