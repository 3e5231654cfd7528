// @ts-check
/** The part of a workflow that one canvas needs. */

/** @typedef {{ class_type: string, inputs: Record<string, unknown> }} PromptNode */

/**
 * The number of the node one of whose inputs has this text in it.
 * @param {Record<string, PromptNode>} nodes
 * @param {string} text
 * @returns {string | undefined}
 */
export const nodeWith = (nodes, text) =>
  Object.keys(nodes).find((id) =>
    Object.values(nodes[id].inputs).some((value) => typeof value === 'string' && value.includes(text)))

/**
 * A node and all that it is connected to, directly or not; nothing that comes after it.
 * @param {Record<string, PromptNode>} nodes
 * @param {string} last
 * @returns {Record<string, PromptNode>}
 */
export function upTo(nodes, last) {
  /** @type {Record<string, PromptNode>} */
  const needed = {}
  const open = [last]
  for (let id = open.pop(); id !== undefined; id = open.pop()) {
    if (id in needed || !(id in nodes)) continue
    needed[id] = nodes[id]
    for (const value of Object.values(nodes[id].inputs)) if (Array.isArray(value)) open.push(String(value[0]))
  }
  return needed
}
