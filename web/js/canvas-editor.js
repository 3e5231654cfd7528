// @ts-check
/** Lazy Canvas Editor: the widget of its node, in both renderers. */
import { app } from '../../../scripts/app.js'
import { CanvasEditor } from './canvas/editor.js'

const NODE = 'LazyCanvasEditor'
const WIDGET = 'LAZY_CANVAS_EDITOR'
const SIZE = { width: 560, height: 540 }

/**
 * What is used of the front end's nodes.
 * @typedef {{
 *   constructor: { comfyClass?: string },
 *   id: number | string,
 *   size: [number, number],
 *   setSize(size: [number, number]): void,
 *   addDOMWidget(name: string, type: string, element: HTMLElement, options: object): any,
 *   onExecuted?: (output: any) => void,
 *   onRemoved?: () => void,
 *   lazyCanvas?: CanvasEditor,
 * }} Node
 */

/**
 * @param {Node} node
 * @param {string} name
 */
function addCanvas(node, name) {
  const editor = new CanvasEditor(() => {
    // Or neither a reload nor the host's undo would know of it.
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
    if (tracker?.captureCanvasState) tracker.captureCanvasState()
    else tracker?.checkState() // its name in older front ends
  })
  const widget = node.addDOMWidget(name, WIDGET, editor.element, {
    getValue: () => editor.value,
    setValue: (/** @type {string} */ text) => (editor.value = text),
    getMinHeight: () => SIZE.height,
    hideOnZoom: false,
    margin: 6,
  })
  widget.serializeValue = () => editor.promptValue()
  node.lazyCanvas = editor
  const { onExecuted, onRemoved } = node
  node.onExecuted = function (output) {
    onExecuted?.call(node, output)
    const [picture] = output?.opened ?? []
    if (picture && !editor.shown()) editor.opened(picture)
  }
  node.onRemoved = function () {
    onRemoved?.call(node)
    editor.remove()
  }
  return { widget, minWidth: SIZE.width, minHeight: SIZE.height }
}

/**
 * Where nodes are elements of the page, one that comes back under its number, as after the host's undo, finds the
 * canvas of the one before still in its place.
 * @param {Node} node
 * @param {number} [frames] to wait for the place at most
 */
function takePlace(node, frames = 120) {
  const { element } = /** @type {CanvasEditor} */ (node.lazyCanvas)
  if (element.isConnected || !frames) return
  const former = document.querySelector(`[data-node-id="${node.id}"] .lazy-canvas-host`)
  if (former) former.replaceWith(element)
  else requestAnimationFrame(() => takePlace(node, frames - 1))
}

app.registerExtension({
  name: 'lazydiffusion.canvasEditor',
  getCustomWidgets: () => ({ [WIDGET]: addCanvas }),
  /** @param {Node} node */
  nodeCreated(node) {
    if (node.constructor.comfyClass !== NODE) return
    node.setSize([Math.max(node.size[0], SIZE.width), Math.max(node.size[1], SIZE.height)])
    requestAnimationFrame(() => takePlace(node))
  },
})
