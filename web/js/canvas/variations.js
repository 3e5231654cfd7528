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
    this.end()
    /** @type {HTMLCanvasElement[]} */
    this.small = []
  }

  /**
   * Room for so many, all of them empty.
   * @param {number} count
   */
  begin(count) {
    this.small = Array.from({ length: count }, () => element('canvas', { width: SIDE, height: SIDE }))
    const buttons = this.small.map((canvas, i) =>
      element('button', { class: 'picture', type: 'button', role: 'radio', 'aria-checked': 'false',
        title: `Variation ${i + 1} (${i + 1})`, click: () => this.choices.choose(i) }, canvas))
    const choice = element('div', { class: 'lazy-canvas-choice' },
      element('button', { type: 'button', title: 'Keep this one and go on (K)', click: () => this.choices.keep() },
        icon('keep'), 'Keep'),
      element('button', { type: 'button', title: 'Keep none: the canvas is as it was (X)',
        click: () => this.choices.discard() }, icon('discard'), 'Discard'))
    this.list.replaceChildren(...buttons, choice)
    this.enable(false)
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
    this.list.replaceChildren(element('span', { class: 'lazy-canvas-hint' }, HINT))
    this.small = []
  }
}
