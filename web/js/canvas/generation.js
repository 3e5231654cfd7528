// @ts-check
/** From Enter to a kept picture: a run, its previews, and the variations that come of it. */
import { bounds, surroundings } from './geometry.js'
import { decoded } from './pictures.js'
import { forget, start, stop } from './runs.js'
import { keep, random } from './server.js'
import { kept, picture } from './state.js'
import { Variations } from './variations.js'

/** @typedef {import('./state.js').Picture} Picture */
/** @typedef {import('./editor.js').CanvasEditor} CanvasEditor */

const SEEDS = 2 ** 32

export class Generation {
  /** @param {CanvasEditor} editor */
  constructor(editor) {
    this.editor = editor
    /** @type {{ name: string, prompt?: string, stopped?: boolean } | undefined} */
    this.run = undefined
    this.asked = '' // the name of the run whose prompt is being written
    /** @type {{ image: HTMLImageElement, box: number[] } | undefined} */
    this.preview = undefined
    /** @type {{ made: Picture[], images: HTMLImageElement[], chosen: number } | undefined} */
    this.choice = undefined
    this.variations = new Variations({
      choose: (i) => this.choose(i), keep: () => void this.keep(), discard: () => this.discard(),
    })
  }

  /** What small pictures show. */
  get square() {
    const size = picture(this.editor.document) ?? { width: 1, height: 1 }
    return surroundings(bounds(this.editor.document.strokes, size) ?? [0, 0, size.width, size.height], size)
  }

  /** What is seen instead of the canvas's own picture. */
  get shown() {
    return this.choice?.images[this.choice.chosen]
  }

  async begin() {
    const { editor } = this
    if (this.run) return
    if (!picture(editor.document)) return editor.panel.say('drop or paste a picture first', { bad: true })
    if (!editor.layers.maskPatch(editor.document.strokes)) {
      return editor.panel.say('paint over what is to change, then press Enter', { bad: true })
    }
    this.discard()
    if (!editor.settings.fixed) editor.set({ seed: Math.floor(Math.random() * SEEDS) })
    const run = (this.run = /** @type {Generation['run']} */ ({ name: random() }))
    this.variations.begin(editor.settings.variations)
    editor.panel.say('waiting for the server', { share: 0 })
    editor.refresh()
    try {
      this.asked = run?.name ?? ''
      const prompt = await start(this.asked, {
        preview: (told) => void this.show(told),
        done: (made) => void this.done(made),
        failed: (word) => this.end(word),
      })
      if (run) run.prompt = prompt
      if (run?.stopped) await stop(prompt)
    } catch (error) {
      this.end(String(/** @type {Error} */ (error).message))
    } finally {
      this.asked = ''
    }
  }

  async interrupt() {
    const { run } = this
    if (!run) return false
    this.editor.panel.say('stopping')
    if (!run.prompt) run.stopped = true
    else {
      await stop(run.prompt).catch((error) => {
        forget(run.prompt ?? '')
        if (this.run === run) this.end(error.message)
      })
    }
    return true
  }

  /** @param {import('./runs.js').Preview} told */
  async show({ name, step, steps, box, pictures }) {
    this.editor.panel.say(`step ${step} of ${steps}`, { share: step / steps })
    const images = await Promise.all(pictures.map(decoded))
    if (this.run?.name !== name) return
    images.forEach((image, i) => this.variations.show(i, image, box, this.square))
    if (images.length) this.preview = { image: images[0], box }
    this.editor.stage.redraw()
  }

  /** @param {Picture[]} made */
  async done(made) {
    try {
      const images = await Promise.all(made.map((each) => this.editor.pictures.load(each.id, false)))
      images.forEach((image, i) =>
        this.variations.show(i, image, [0, 0, image.width, image.height], this.square))
      this.run = this.preview = undefined
      this.choice = { made, images, chosen: 0 }
      this.variations.enable(true)
      this.choose(0)
      this.editor.panel.say(
        made.length > 1 ? `1–${made.length} choose, K keeps, X discards, Enter tries again` : 'K keeps, X discards')
      this.editor.refresh()
    } catch (error) {
      this.end(String(/** @type {Error} */ (error).message))
    }
  }

  /**
   * Nothing came of it: the canvas is as it was.
   * @param {string} word
   */
  end(word) {
    this.run = this.preview = undefined
    this.variations.end()
    this.editor.panel.say(word, { bad: true })
    this.editor.refresh()
  }

  /** @param {number} i */
  choose(i) {
    if (!this.choice?.images[i]) return
    this.choice.chosen = i
    this.variations.mark(i)
    this.editor.stage.redraw()
  }

  async keep() {
    const chosen = this.choice?.made[this.choice.chosen]
    if (!chosen) return
    try {
      await keep(chosen.id)
    } catch (error) {
      return this.editor.panel.say(String(/** @type {Error} */ (error).message), { bad: true })
    }
    if (!this.choice?.made.includes(chosen)) return
    this.discard()
    this.editor.commit(kept(this.editor.document, chosen))
    this.editor.panel.say('kept: paint what is next')
  }

  discard() {
    if (!this.choice) return
    this.choice = undefined
    this.variations.end()
    this.editor.panel.say('')
    this.editor.refresh()
  }

  /** The canvas goes, or becomes another: nothing of this one is of use any more. */
  abandon() {
    if (this.run?.prompt) {
      forget(this.run.prompt)
      void stop(this.run.prompt).catch(() => {})
    }
    this.run = this.preview = this.choice = undefined
    this.variations.end()
  }
}
