// @ts-check
/** Mouse, pen and finger on the stage: strokes, panning, zooming, and edges that are dragged. */
import { edgeAt, extended, margins, onElement, onPicture } from './geometry.js'

/** @typedef {import('./state.js').Stroke} Stroke */
/** @typedef {import('./geometry.js').Margins} Margins */
/** @typedef {import('./geometry.js').Size} Size */
/** @typedef {import('./stage.js').Stage} Stage */
/**
 * @typedef {{
 *   size(): Size | undefined,
 *   ready(): boolean,
 *   tool(): { size: number, erase?: boolean, colour?: string },
 *   panning(): boolean,
 *   growing(stroke: Stroke, from: number): void,
 *   painted(stroke: Stroke): void,
 *   dropped(): void,
 *   hover(x: number, y: number): void,
 *   left(): void,
 *   dragging(added: Margins | undefined): void,
 *   extended(added: Margins): void,
 * }} Hand
 */
/** @typedef {{ move(event: PointerEvent): void, end(): void, cancel(): void }} Gesture */

const WHEEL = 1.0015
const CURSORS = { left: 'ew-resize', right: 'ew-resize', top: 'ns-resize', bottom: 'ns-resize' }

export class Pointer {
  /**
   * @param {Stage} stage
   * @param {Hand} hand
   */
  constructor(stage, hand) {
    this.stage = stage
    this.hand = hand
    /** @type {{ id: number, gesture: Gesture } | undefined} */
    this.held = undefined
    const { canvas } = stage
    canvas.addEventListener('pointerdown', (event) => this.down(event))
    canvas.addEventListener('pointermove', (event) => this.move(event))
    canvas.addEventListener('pointerup', (event) => this.up(event, 'end'))
    canvas.addEventListener('pointercancel', (event) => this.up(event, 'cancel'))
    canvas.addEventListener('pointerleave', () => hand.left())
    canvas.addEventListener('wheel', (event) => this.wheel(event), { passive: false })
    canvas.addEventListener('contextmenu', (event) => event.preventDefault())
  }

  /** @type {(event: MouseEvent) => [number, number]} */
  onStage(event) {
    return onElement(event, this.stage.canvas.getBoundingClientRect(), this.stage.size)
  }

  /** @param {PointerEvent} event */
  down(event) {
    if (this.held) return
    const gesture = this.gesture(event)
    if (!gesture) return
    this.stage.canvas.setPointerCapture(event.pointerId)
    this.held = { id: event.pointerId, gesture }
    gesture.move(event)
  }

  /** @param {PointerEvent} event */
  move(event) {
    const [x, y] = this.onStage(event)
    this.hand.hover(...onPicture(this.stage.view, x, y))
    if (this.held?.id === event.pointerId) return this.held.gesture.move(event)
    const size = this.hand.size()
    const edge = size && edgeAt(this.stage.view, size, x, y)
    this.stage.canvas.style.cursor = edge ? CURSORS[edge] : this.hand.panning() ? 'grab' : 'crosshair'
  }

  /**
   * @param {PointerEvent} event
   * @param {'end' | 'cancel'} how
   */
  up(event, how) {
    if (this.held?.id !== event.pointerId) return
    const { gesture } = this.held
    this.held = undefined
    gesture[how]()
  }

  /** @param {WheelEvent} event */
  wheel(event) {
    event.preventDefault()
    event.stopPropagation()
    this.stage.zoom(WHEEL ** -event.deltaY, ...this.onStage(event))
  }

  /** @type {(event: PointerEvent) => Gesture | undefined} */
  gesture(event) {
    if (event.button === 1 || (event.button === 0 && this.hand.panning())) return this.panning(event)
    const size = this.hand.size()
    if (!size || (event.button !== 0 && event.button !== 5)) return undefined
    if (!this.hand.ready()) return this.hand.dropped(), undefined
    const edge = edgeAt(this.stage.view, size, ...this.onStage(event))
    return edge ? this.edgeDrag(edge, event) : this.painting(event)
  }

  /** @type {(event: PointerEvent) => Gesture} */
  panning(event) {
    let last = this.onStage(event)
    return {
      move: (now) => {
        const [x, y] = this.onStage(now)
        this.stage.pan(x - last[0], y - last[1])
        last = [x, y]
      },
      end() {},
      cancel() {},
    }
  }

  /** @type {(edge: import('./geometry.js').Edge, event: PointerEvent) => Gesture} */
  edgeDrag(edge, event) {
    const first = onPicture(this.stage.view, ...this.onStage(event))
    /** @type {Margins | undefined} */
    let added
    return {
      move: (now) => {
        const [x, y] = onPicture(this.stage.view, ...this.onStage(now))
        added = margins(edge, x - first[0], y - first[1])
        this.hand.dragging(added)
      },
      end: () => {
        this.hand.dragging(undefined)
        if (added && Object.values(added).some(Boolean)) this.hand.extended(added)
      },
      cancel: () => this.hand.dragging(undefined),
    }
  }

  /** @type {(event: PointerEvent) => Gesture} */
  painting(event) {
    const { size, erase, colour } = this.hand.tool()
    /** @type {Stroke} */
    const stroke = { size, points: [] }
    if (erase || event.button === 5) stroke.erase = true // 5: the other end of a pen
    else if (colour) stroke.colour = colour
    if (event.pointerType === 'pen') stroke.widths = []
    const least = Math.max(size / 16, 0.75)
    return {
      move: (now) => {
        const from = stroke.points.length / 2
        const all = now.getCoalescedEvents?.() ?? []
        for (const each of all.length ? all : [now]) {
          const [x, y] = onPicture(this.stage.view, ...this.onStage(each))
          if (extended(stroke.points, x, y, least)) stroke.widths?.push(pressed(size, each.pressure))
        }
        if (stroke.points.length / 2 > from) this.hand.growing(stroke, from)
      },
      end: () => this.hand.painted(stroke),
      cancel: () => this.hand.painted(stroke),
    }
  }
}

/** @type {(size: number, pressure: number) => number} */
const pressed = (size, pressure) => Math.max(Math.round(size * (0.25 + 0.75 * pressure) * 4) / 4, 0.5)
