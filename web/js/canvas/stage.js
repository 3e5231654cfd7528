// @ts-check
/** The picture, what is painted on it and what becomes of it, drawn as the view says. */
import { fitted, panned, zoomed } from './geometry.js'

/** @typedef {import('./geometry.js').View} View */
/** @typedef {import('./geometry.js').Size} Size */
/** @typedef {import('./geometry.js').Margins} Margins */
/**
 * What there is to see.
 * @typedef {{
 *   picture?: CanvasImageSource, size?: Size, mask?: HTMLCanvasElement, sketch?: HTMLCanvasElement,
 *   preview?: { image: CanvasImageSource, box: number[] },
 *   brush?: { x: number, y: number, size: number }, added?: Margins,
 * }} Scene
 */

const VEIL = 0.55
const PIXELS = 2 // a picture that is enlarged more than this shows its pixels

export class Stage {
  /** @param {() => Scene} scene */
  constructor(scene) {
    this.scene = scene
    this.canvas = document.createElement('canvas')
    this.canvas.className = 'lazy-canvas-stage'
    this.inHole = document.createElement('canvas')
    /** @type {View} */
    this.view = { scale: 1, x: 0, y: 0 }
    this.whole = true // whether the view follows the stage's size
    this.waiting = false
    this.watcher = new ResizeObserver(() => this.redraw())
    this.watcher.observe(this.canvas)
  }

  /** @returns {Size} */
  get size() {
    return { width: this.canvas.clientWidth || 1, height: this.canvas.clientHeight || 1 }
  }

  fit() {
    this.whole = true
    this.redraw()
  }

  /** @type {(factor: number, x?: number, y?: number) => void} */
  zoom(factor, x = this.size.width / 2, y = this.size.height / 2) {
    this.whole = false
    this.view = zoomed(this.view, factor, x, y)
    this.redraw()
  }

  /** @type {(dx: number, dy: number) => void} */
  pan(dx, dy) {
    this.whole = false
    this.view = panned(this.view, dx, dy)
    this.redraw()
  }

  /** Once before the page is drawn next, however often it is asked for. */
  redraw() {
    if (this.waiting) return
    this.waiting = true
    requestAnimationFrame(() => {
      this.waiting = false
      this.draw()
    })
  }

  draw() {
    const { size } = this
    const shown = this.canvas.getBoundingClientRect() // with the zoom of the graph
    const sharp = Math.min(Math.max((shown.width / size.width) * devicePixelRatio, 0.25), 4)
    const [width, height] = [Math.round(size.width * sharp), Math.round(size.height * sharp)]
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height })
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext('2d'))
    context.setTransform(sharp, 0, 0, sharp, 0, 0)
    context.clearRect(0, 0, size.width, size.height)
    const scene = this.scene()
    if (!scene.size) return
    if (this.whole) this.view = fitted(scene.size, size)
    context.translate(this.view.x, this.view.y)
    context.scale(this.view.scale, this.view.scale)
    context.imageSmoothingEnabled = this.view.scale * sharp < PIXELS
    this.drawScene(context, scene, scene.size)
  }

  /**
   * @param {CanvasRenderingContext2D} context in pixels of the picture
   * @param {Scene} scene
   * @param {Size} size
   */
  drawScene(context, { picture, mask, sketch, preview, brush, added }, size) {
    if (picture) context.drawImage(picture, 0, 0, size.width, size.height)
    if (sketch) context.drawImage(sketch, 0, 0)
    if (preview && mask) context.drawImage(this.clipped(preview, mask), 0, 0)
    else if (mask) {
      context.globalAlpha = sketch ? VEIL / 2 : VEIL
      context.drawImage(mask, 0, 0)
      context.globalAlpha = 1
    }
    if (added) outline(context, -added.left, -added.top, size.width + added.left + added.right,
      size.height + added.top + added.bottom, this.view.scale)
    if (brush) ring(context, brush, this.view.scale)
  }

  /**
   * What is being sampled, inside of what is painted.
   * @param {{ image: CanvasImageSource, box: number[] }} preview
   * @param {HTMLCanvasElement} mask
   */
  clipped({ image, box }, mask) {
    const { inHole } = this
    Object.assign(inHole, { width: mask.width, height: mask.height })
    const context = /** @type {CanvasRenderingContext2D} */ (inHole.getContext('2d'))
    context.drawImage(image, box[0], box[1], box[2], box[3])
    context.globalCompositeOperation = 'destination-in'
    context.drawImage(mask, 0, 0)
    return inHole
  }

  remove() {
    this.watcher.disconnect()
  }
}

/**
 * The brush: light and dark, so that it is seen on any picture.
 * @param {CanvasRenderingContext2D} context
 * @param {{ x: number, y: number, size: number }} brush
 * @param {number} scale
 */
function ring(context, { x, y, size }, scale) {
  for (const [colour, wider] of /** @type {[string, number][]} */ ([['#000a', 1], ['#fffd', 0]])) {
    context.strokeStyle = colour
    context.lineWidth = 1 / scale
    context.beginPath()
    context.arc(x, y, Math.max(size / 2 + wider / scale, 0.5 / scale), 0, 2 * Math.PI)
    context.stroke()
  }
}

/** @type {(context: CanvasRenderingContext2D, x: number, y: number, w: number, h: number, scale: number) => void} */
function outline(context, x, y, width, height, scale) {
  context.strokeStyle = '#3b82f6'
  context.lineWidth = 2 / scale
  context.setLineDash([6 / scale, 4 / scale])
  context.strokeRect(x, y, width, height)
  context.setLineDash([])
}
