// @ts-check
/** One canvas: its document, its tools, and all that shows and changes them. */
import { actionsOf, handOf, listenTo } from './controls.js'
import { canvases, savePNG, saveWorkflow, takeIn } from './export.js'
import { FullWindow } from './full.js'
import { Generation } from './generation.js'
import { addedBoxes } from './geometry.js'
import { Keyboard } from './keyboard.js'
import { Layers } from './layers.js'
import { askSize, element, emptyNote, onSlider, Panel } from './panel.js'
import { Pictures } from './pictures.js'
import { Pointer } from './pointer.js'
import { blank, extend, newSize, open, tab } from './server.js'
import { Stage } from './stage.js'
import * as state from './state.js'
import { addStyle } from './style.js'

/** @typedef {import('./state.js').Document} Document */
/** @typedef {import('./state.js').Settings} Settings */
/** @typedef {import('./state.js').Picture} Picture */

const STEP = 0.5 // of the brush, by which an arrow key moves it

export class CanvasEditor {
  /** @param {() => void} changed  is told that there is something new to save */
  constructor(changed) {
    addStyle()
    this.changed = changed
    this.line = state.timeline(state.EMPTY)
    this.settings = { ...state.DEFAULTS }
    /** @type {Record<string, string> | undefined} pictures that are being exported along */
    this.enclosed = undefined
    this.tool = 'brush'
    this.size = 40
    this.compares = this.pans = false
    /** @type {{ x: number, y: number } | undefined} where the brush is, on the picture */
    this.brush = undefined
    /** @type {import('./geometry.js').Margins | undefined} */
    this.added = undefined
    /** @type {HTMLImageElement | undefined} */
    this.image = undefined
    /** @type {HTMLImageElement | undefined} */
    this.before = undefined
    this.pictures = new Pictures()
    this.layers = new Layers()
    this.generation = new Generation(this)
    const actions = actionsOf(this)
    this.panel = new Panel(actions)
    this.stage = new Stage(() => this.scene())
    this.keyboard = new Keyboard(actions, {
      choose: (i) => this.generation.choose(i),
      step: (dx, dy, far) => this.step(dx, dy, far),
      compare: (on) => this.compare(on),
      space: (down) => this.space(down),
      paste: (file) => void this.openFile(file),
    })
    this.pointer = new Pointer(this.stage, handOf(this))
    this.note = emptyNote(actions)
    this.middle = element('div', { class: 'lazy-canvas-middle' }, this.keyboard.field, this.stage.canvas, this.note)
    this.root = element('div', { class: 'lazy-canvas', 'data-capture-wheel': 'true' },
      this.panel.tools, this.middle, this.generation.variations.list, this.panel.asking, this.panel.status)
    this.full = new FullWindow(this.root, () => Boolean(this.generation.run && this.generation.interrupt()))
    this.element = element('div', { class: 'lazy-canvas-host' }, this.root)
    listenTo(this)
    canvases.add(this)
    this.panel.say('')
    this.refresh()
  }

  get document() {
    return this.line.present
  }

  shown() {
    return state.picture(this.document)
  }

  /** The text that a workflow is saved with. */
  get value() {
    return state.written(this.document, this.settings, this.enclosed)
  }

  set value(text) {
    if (text === this.value) return
    const { document, settings, pictures } = state.read(text)
    this.generation.abandon()
    this.settings = settings
    this.line = state.timeline(document)
    takeIn(pictures).catch((error) => this.panel.say(error.message, { bad: true })).finally(() => this.refresh())
  }

  /** The text that the node gets: what it needs of this canvas, and no more. */
  promptValue() {
    const { asked } = this.generation
    const { prompt, seed, variations } = this.settings
    const { strokes } = this.document
    const told = { canvas: this.shown()?.id, prompt, mask: this.shown() && this.layers.maskPatch(strokes) }
    if (!asked) return JSON.stringify(told)
    return JSON.stringify({ ...told, sketch: this.layers.sketchPatch(strokes), name: asked, tab, seed, variations })
  }

  /** @param {Document} document */
  commit(document) {
    this.line = state.commit(this.line, document)
    this.saved()
  }

  /** @param {(line: state.Timeline) => state.Timeline} move */
  travel(move) {
    if (this.generation.run) return this.panel.say('stop first (Esc)')
    if (this.generation.choice) return this.generation.discard()
    this.line = move(this.line)
    this.saved()
  }

  /** @param {Partial<Settings>} some */
  set(some) {
    this.settings = { ...this.settings, ...some }
    this.showSettings()
    this.changed()
  }

  saved() {
    this.refresh()
    this.changed()
  }

  /** Everything as the document says. */
  refresh() {
    const picture = this.shown()
    const { buttons, generate, stop } = this.panel
    this.note.hidden = Boolean(picture)
    this.showSettings()
    const running = Boolean(this.generation.run)
    generate.hidden = running
    stop.hidden = !running
    buttons.undo.disabled = running || state.undo(this.line).present === this.document
    buttons.redo.disabled = running || state.redo(this.line).present === this.document
    buttons.clear.disabled = running || !this.document.strokes.length
    for (const each of ['compare', 'fit', 'save']) buttons[each].disabled = !picture
    this.panel.showTool(this.tool)
    if (picture) this.layers.paint(this.document.strokes, picture)
    void this.showPicture(picture)
  }

  showSettings() {
    const { prompt, count, seed, fixed, size } = this.panel
    if (prompt.value !== this.settings.prompt) prompt.value = this.settings.prompt
    count.value = String(this.settings.variations)
    seed.value = String(this.settings.seed)
    fixed.setAttribute('aria-pressed', String(this.settings.fixed))
    size.value = String(onSlider(this.size))
  }

  /** @param {Picture | undefined} picture */
  async showPicture(picture) {
    const { history, at } = this.document
    try {
      const image = picture && (await this.pictures.load(picture.id))
      const before = at > 0 ? await this.pictures.load(history[at - 1].id).catch(() => undefined) : undefined
      if (picture === this.shown()) Object.assign(this, { image, before })
    } catch (error) {
      if (picture !== this.shown()) return
      this.image = undefined
      this.panel.say(String(/** @type {Error} */ (error).message), { bad: true })
    }
    this.stage.redraw()
  }

  /** @returns {import('./stage.js').Scene} */
  scene() {
    const size = this.shown()
    const { generation, compares } = this
    const chosen = generation.shown
    if (compares) return { picture: chosen ? this.image : (this.before ?? this.image), size }
    if (chosen) return { picture: chosen, size, added: this.added }
    const brush = this.brush && { ...this.brush, size: this.size }
    const painted = this.document.strokes.length || this.pointer?.held ? this.layers : undefined
    const sketch = painted && !generation.preview ? painted.sketch : undefined
    const { image: picture, added } = this
    return { picture, size, mask: painted?.mask, sketch, preview: generation.preview, brush, added }
  }

  /** @param {string} tool */
  choose(tool) {
    this.tool = tool
    this.refresh()
  }

  /** @param {number} size in pixels of the picture */
  resize(size) {
    this.size = Math.min(Math.max(Math.round(size), 1), 2000)
    this.panel.size.value = String(onSlider(this.size))
    this.stage.redraw()
  }

  /** @param {boolean} on */
  compare(on) {
    this.compares = on
    this.stage.redraw()
  }

  /** @type {(dx: number, dy: number, far: boolean) => void} */
  step(dx, dy, far) {
    const picture = this.shown()
    const { choice } = this.generation
    if (choice) return this.generation.choose((choice.chosen + dx + choice.made.length) % choice.made.length)
    if (!picture) return
    const from = this.brush ?? { x: picture.width / 2, y: picture.height / 2 }
    const by = Math.max(this.size * STEP * (far ? 4 : 1), 1)
    const [x, y] = [from.x + dx * by, from.y + dy * by]
    this.brush = { x: Math.min(Math.max(x, 0), picture.width), y: Math.min(Math.max(y, 0), picture.height) }
    this.stage.redraw()
  }

  /** @param {boolean} down */
  space(down) {
    this.pans = down
    if (down || this.pointer.held || !this.brush || !this.ready()) return
    this.commit(state.painted(this.document, { ...this.brushStroke(), points: [this.brush.x, this.brush.y] }))
  }

  brushStroke() {
    const erase = this.tool === 'eraser'
    const colour = this.tool === 'sketch' ? this.panel.colour.value : undefined
    return { size: this.size, ...(erase && { erase }), ...(colour && { colour }) }
  }

  ready() {
    return Boolean(this.shown()) && !this.generation.run && !this.generation.choice
  }

  /** @param {Blob} file */
  openFile(file) {
    return this.begin(() => open(file))
  }

  async openBlank() {
    const size = await askSize(this.shown()?.width ?? (await newSize()))
    if (size) await this.begin(() => blank(...size))
  }

  /** @param {() => Promise<Picture>} make */
  async begin(make) {
    this.panel.say('opening')
    try {
      this.opened(await make())
    } catch (error) {
      this.panel.say(String(/** @type {Error} */ (error).message), { bad: true })
    }
  }

  /** @param {Picture} picture */
  opened(picture) {
    this.generation.abandon()
    this.stage.fit()
    this.commit(state.opened(picture))
    this.resize(Math.max(picture.width, picture.height) / 12)
    this.panel.say('paint over what is to change')
    this.keyboard.focus()
  }

  /** @param {import('./geometry.js').Margins} added */
  async widen(added) {
    const before = this.shown()
    if (!before || !this.ready()) return
    try {
      const next = await extend(before.id, added)
      const strokes = addedBoxes(before, added).map((box) => ({ size: 1, points: [], box }))
      this.stage.fit()
      this.commit(state.kept(this.document, next, strokes))
    } catch (error) {
      this.panel.say(String(/** @type {Error} */ (error).message), { bad: true })
    }
  }

  /** @param {boolean} asWorkflow */
  async save(asWorkflow) {
    const picture = this.shown()
    if (!picture) return
    await (asWorkflow ? saveWorkflow() : savePNG(picture)).catch((error) =>
      this.panel.say(error.message, { bad: true }))
  }

  remove() {
    this.generation.abandon()
    this.full.remove()
    this.stage.remove()
    canvases.delete(this)
  }
}
