// @ts-check
/** What buttons, keys, the pointer and dropped files do to a canvas. */
import { pictureOf } from './keyboard.js'
import { fromSlider } from './panel.js'
import * as state from './state.js'

/** @typedef {import('./editor.js').CanvasEditor} CanvasEditor */

const LARGER = 1.2 // by which a key changes the brush, and how close the picture is

/**
 * @param {CanvasEditor} editor
 * @returns {Record<string, (event?: any) => void>}
 */
export function actionsOf(editor) {
  return {
    brush: () => editor.choose('brush'),
    eraser: () => editor.choose('eraser'),
    sketch: () => editor.choose('sketch'),
    undo: () => editor.travel(state.undo),
    redo: () => editor.travel(state.redo),
    clear: () => editor.ready() && editor.commit(state.cleared(editor.document)),
    everything: () => everything(editor),
    smaller: () => editor.resize(Math.min(editor.size / LARGER, editor.size - 1)),
    larger: () => editor.resize(Math.max(editor.size * LARGER, editor.size + 1)),
    sized: () => editor.resize(fromSlider(Number(editor.panel.size.value))),
    coloured: () => editor.stage.redraw(),
    closer: () => editor.stage.zoom(LARGER),
    farther: () => editor.stage.zoom(1 / LARGER),
    fit: () => editor.stage.fit(),
    full: () => {
      editor.full.toggle()
      editor.keyboard.focus()
    },
    open: () => chooseFile(editor),
    blank: () => void editor.openBlank(),
    save: (event) => void editor.save(Boolean(event?.shiftKey)),
    write: () => editor.panel.prompt.select(),
    prompted: () => editor.set({ prompt: editor.panel.prompt.value }),
    counted: () => editor.set({ variations: Number(editor.panel.count.value) }),
    seeded: () => editor.set({ seed: Math.max(Math.floor(Number(editor.panel.seed.value)) || 0, 0), fixed: true }),
    fixed: () => editor.set({ fixed: !editor.settings.fixed }),
    generate: () => void editor.generation.begin(),
    stop: () => void editor.generation.interrupt(),
    escape: () => {
      if (editor.generation.run) void editor.generation.interrupt()
      else if (editor.full.open) editor.full.toggle()
    },
    keep: () => void editor.generation.keep(),
    discard: () => editor.generation.discard(),
  }
}

/** @param {CanvasEditor} editor */
function everything(editor) {
  const picture = editor.shown()
  if (!picture || !editor.ready()) return
  editor.commit(state.painted(editor.document, { size: 1, points: [], box: [0, 0, picture.width, picture.height] }))
}

/** @param {CanvasEditor} editor */
function chooseFile(editor) {
  const input = document.createElement('input')
  input.type = 'file'
  input.accept = 'image/*'
  input.addEventListener('change', () => input.files?.[0] && void editor.openFile(input.files[0]))
  input.click()
}

/**
 * @param {CanvasEditor} editor
 * @returns {import('./pointer.js').Hand}
 */
export function handOf(editor) {
  return {
    size: () => editor.shown(),
    ready: () => editor.ready(),
    tool: () => editor.brushStroke(),
    panning: () => editor.pans,
    growing: (stroke, from) => {
      editor.layers.add(stroke, from)
      editor.stage.redraw()
    },
    painted: (stroke) => {
      if (stroke.points.length) editor.commit(state.painted(editor.document, stroke))
    },
    dropped: () => editor.panel.say(editor.generation.run ? 'stop first (Esc)' : 'keep (K) or discard (X) first'),
    hover: (x, y) => {
      editor.brush = { x, y }
      editor.stage.redraw()
    },
    left: () => {
      editor.brush = undefined
      editor.stage.redraw()
    },
    dragging: (added) => {
      editor.added = added
      editor.stage.redraw()
    },
    extended: (added) => void editor.widen(added),
  }
}

/**
 * What the page would otherwise do with what happens inside of the canvas stays inside.
 * @param {CanvasEditor} editor
 */
export function listenTo(editor) {
  const { root, panel, keyboard, middle } = editor
  for (const kind of ['pointerdown', 'pointermove', 'pointerup', 'mousedown', 'dblclick', 'contextmenu', 'keyup']) {
    root.addEventListener(kind, (event) => event.stopPropagation())
  }
  root.addEventListener('wheel', (event) => event.stopPropagation())
  middle.addEventListener('pointerdown', (event) => {
    if (event.target !== editor.stage.canvas) return
    event.preventDefault() // or the focus would go to what cannot have it
    keyboard.focus()
  })
  panel.prompt.addEventListener('keydown', (event) => {
    event.stopPropagation()
    if (event.key === 'Enter' && !event.isComposing) void editor.generation.begin()
    if (event.key !== 'Escape') return
    event.preventDefault()
    if (editor.generation.run) void editor.generation.interrupt()
    else keyboard.focus()
  })
  const { compare } = panel.buttons
  compare.addEventListener('pointerdown', () => editor.compare(true))
  for (const kind of ['pointerup', 'pointerleave', 'pointercancel']) {
    compare.addEventListener(kind, () => editor.compare(false))
  }
  dropping(editor)
}

/** @param {CanvasEditor} editor */
function dropping(editor) {
  const { root } = editor
  const mark = (/** @type {boolean} */ on) => root.classList.toggle('dragging', on)
  root.addEventListener('dragover', (event) => {
    event.preventDefault()
    event.stopPropagation()
    mark(true)
  })
  root.addEventListener('dragleave', () => mark(false))
  root.addEventListener('drop', (event) => {
    event.preventDefault()
    event.stopPropagation()
    mark(false)
    const file = pictureOf(event.dataTransfer)
    if (file) void editor.openFile(file)
    else editor.panel.say('drop a picture file', { bad: true })
  })
}
