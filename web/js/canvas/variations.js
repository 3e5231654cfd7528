// @ts-check
/** Variations side by side, one of which is shown on the canvas until it is kept or discarded. */
import { icon } from './icons.js'
import { element } from './panel.js'

/** @typedef {import('./state.js').Picture} Picture */
/** @typedef {{ choose(i: number): void, keep(): void, discard(): void }} Choices */

const SIDE = 152 // px of a small picture, twice what it is on the screen
const HINT = 'B brush · E eraser · S sketch · [ ] size · wheel zoom · Space drag · Enter generate · Esc stop · '
  + 'hold C compare · Ctrl+Z undo · drag an edge to widen'

export class Variations {
  /** @param {Choices} choices */
  constructor(choices) {
    this.choices = choices
    this.list = element('div', { class: 'lazy-canvas-variations', role: 'radiogroup', 'aria-label': 'Variations' })
    this.hint = element('span', { class: 'lazy-canvas-hint' }, HINT)
    this.choice = element('div', { class: 'lazy-canvas-choice' },
      element('button', { type: 'button', title: 'Keep this one and go on (K)', click: () => choices.keep() },
        icon('keep'), 'Keep'),
      element('button', { type: 'button', title: 'Keep none: the canvas is as it was (X)',
        click: () => choices.discard() }, icon('discard'), 'Discard'))
    /** @type {HTMLCanvasElement[]} the same from stroke to stroke */
    this.small = []
    this.end()
  }

  /**
   * Room for so many, all of them empty.
   * @param {number} count
   */
  begin(count) {
    while (this.small.length < count) this.add(this.small.length)
    const shown = this.small.slice(0, count)
    for (const canvas of shown) canvas.getContext('2d')?.clearRect(0, 0, SIDE, SIDE)
    this.list.replaceChildren(...shown.map((canvas) => /** @type {Node} */ (canvas.parentNode)), this.choice)
    this.mark(-1)
    this.enable(false)
  }

  /** @param {number} i */
  add(i) {
    const canvas = element('canvas', { width: SIDE, height: SIDE })
    element('button', { class: 'picture', type: 'button', role: 'radio', title: `Variation ${i + 1} (${i + 1})`,
      click: () => this.choices.choose(i) }, canvas)
    this.small.push(canvas)
  }

  /** @param {boolean} done whether there is something to choose from */
  enable(done) {
    for (const button of this.list.querySelectorAll('button')) button.disabled = !done
  }

  /**
   * One of them.
   * @param {number} i
   * @param {HTMLImageElement} image
   * @param {number[]} box where on the canvas the image lies
   * @param {[number, number, number]} square that is shown of the canvas
   */
  show(i, image, box, [x, y, side]) {
    const context = this.small[i]?.getContext('2d')
    if (!context) return
    const scale = SIDE / side
    context.clearRect(0, 0, SIDE, SIDE)
    context.drawImage(image, (box[0] - x) * scale, (box[1] - y) * scale, box[2] * scale, box[3] * scale)
  }

  /** @param {number} chosen */
  mark(chosen) {
    this.list.querySelectorAll('.picture').forEach((button, i) =>
      button.setAttribute('aria-checked', String(i === chosen)))
  }

  /** Nothing to choose from: the place says what keys there are, so that the picture above need not move. */
  end() {
    this.list.replaceChildren(this.hint)
  }
}
