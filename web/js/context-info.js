// @ts-check
/**
 * Lazy Context Info shows its text in a widget of its own, line by line, in both renderers. The last text stays in the
 * node's properties, so that it is there again as soon as a workflow is opened, whether or not anything runs.
 */
import { app } from '../../../scripts/app.js'
import { ComfyWidgets } from '../../../scripts/widgets.js'

const NODE = 'LazyContextInfo'
const PROPERTY = 'last_text'

/**
 * What is used of the front end's nodes.
 * @typedef {{
 *   value: string, serialize?: boolean, options: Record<string, unknown>, element?: HTMLTextAreaElement,
 * }} TextWidget
 * @typedef {{
 *   constructor: { comfyClass?: string },
 *   properties: Record<string, unknown>,
 *   onExecuted?: (output: { text?: string[] }) => void,
 *   onConfigure?: (saved: object) => void,
 * }} Node
 */

/**
 * A text that nobody can edit, and that goes neither into the prompt nor among a saved workflow's widget values.
 * @param {Node} node
 * @returns {TextWidget}
 */
function addReadOnlyText(node) {
  /** @type {TextWidget} */
  const widget = ComfyWidgets.STRING(node, 'text', ['STRING', { multiline: true }], app).widget
  widget.serialize = false
  Object.assign(widget.options, { serialize: false, read_only: true })
  if (widget.element) {
    widget.element.readOnly = true
    widget.element.placeholder = ''
  }
  return widget
}

/** @param {Node} node */
function showText(node) {
  const widget = addReadOnlyText(node)
  const { onExecuted, onConfigure } = node

  node.onExecuted = function (output) {
    onExecuted?.call(node, output)
    widget.value = (output.text ?? []).join('\n')
    if (node.properties[PROPERTY] === widget.value) return
    node.properties[PROPERTY] = widget.value
    app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState() // or a reload would not know of it
  }
  node.onConfigure = function (saved) {
    onConfigure?.call(node, saved)
    widget.value = String(node.properties[PROPERTY] ?? '')
  }
}

app.registerExtension({
  name: 'lazydiffusion.contextInfo',
  /** @param {Node} node */
  nodeCreated(node) {
    if (node.constructor.comfyClass === NODE) showText(node)
  },
})
