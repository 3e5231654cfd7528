// @ts-check
/** Runs of a canvas's node: what it needs goes to the server's queue, and what is told of it comes back here. */
import { api } from '../../../../scripts/api.js'
import { app } from '../../../../scripts/app.js'
import { nodeWith, upTo } from './prompt.js'
import { SILENT } from './server.js'

/** @typedef {import('./state.js').Picture} Picture */
/** @typedef {{ name: string, step: number, steps: number, box: number[], pictures: string[] }} Preview */
/**
 * @typedef {{
 *   preview(preview: Preview): void,
 *   done(variations: Picture[]): void,
 *   failed(word: string): void,
 * }} Listener
 */

const STOPPED = 'stopped: the canvas is as it was'
/** @type {Map<string, { node: string, listener: Listener }>} by prompt */
const running = new Map()
// A short run may be over before the server's answer has said what it is called: what is told meanwhile waits.
let asked = 0
/** @type {[string, any][]} */
let early = []

/**
 * Queue the node that has this name in its prompt, and nothing that comes after it.
 * @param {string} name
 * @param {Listener} listener
 * @returns {Promise<string>} the prompt's own name
 */
export async function start(name, listener) {
  const { output, workflow } = await app.graphToPrompt()
  const node = nodeWith(output, name)
  if (!node) throw new Error('this node is muted or bypassed: switch it on')
  const missing = ['model', 'clip', 'vae'].filter((each) => !output[node].inputs[each])
  if (missing.length) throw new Error(`connect ${missing.join(', ')} to this node, as of Lazy Checkpoint Loader`)
  asked += 1
  try {
    const { prompt_id: prompt } = await api.queuePrompt(0, { output: upTo(output, node), workflow })
    running.set(prompt, { node, listener })
    for (const [event, told] of early.filter(([, told]) => told.prompt_id === prompt)) EVENTS[event](told)
    return prompt
  } catch (error) {
    throw new Error(refusal(error))
  } finally {
    asked -= 1
    if (!asked) early = []
  }
}

/**
 * End a run, whether it has begun or waits.
 * @param {string} prompt
 */
export async function stop(prompt) {
  const body = (/** @type {object} */ told) => ({
    method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(told),
  })
  const ask = (/** @type {string} */ path, /** @type {object} */ how) => api.fetchApi(path, how).catch(() => {
    throw new Error(SILENT)
  })
  await ask('/queue', body({ delete: [prompt] }))
  await ask('/interrupt', body({ prompt_id: prompt }))
  const { queue_running: now } = await (await ask('/queue', {})).json()
  if (!now.some((/** @type {any[]} */ each) => each[1] === prompt)) end(prompt, (listener) => listener.failed(STOPPED))
}

/** @type {(prompt: string) => void} */
export const forget = (prompt) => void running.delete(prompt)

/** @param {any} error */
function refusal(error) {
  if (error instanceof TypeError) return SILENT
  const told = error?.response
  const nodes = Object.values(told?.node_errors ?? {})
  const first = nodes[0]?.errors?.[0]
  return first ? `${first.message}: ${first.details}` : (told?.error?.message ?? error?.message ?? String(error))
}

/**
 * @param {string} prompt
 * @param {(listener: Listener, node: string) => void} tell
 */
function end(prompt, tell) {
  const run = running.get(prompt)
  running.delete(prompt)
  if (run) tell(run.listener, run.node)
}

/** @type {(output: any) => Picture[]} */
const variations = (output) => output?.variations ?? []

/**
 * After the server was away: what has become of the runs meanwhile.
 */
async function lookUp() {
  for (const prompt of [...running.keys()]) {
    const history = (await (await api.fetchApi(`/history/${prompt}`)).json())[prompt]
    const { queue_running: now, queue_pending: next } = await (await api.fetchApi('/queue')).json()
    if ([...now, ...next].some((/** @type {any[]} */ each) => each[1] === prompt)) continue
    end(prompt, (listener, node) => {
      const made = variations(history?.outputs?.[node])
      if (made.length) listener.done(made)
      else listener.failed('the server was started anew meanwhile: press Enter again')
    })
  }
}

/** @type {Record<string, (told: any) => void>} */
const EVENTS = {
  'lazydiffusion.preview': (told) => running.get(told.prompt_id)?.listener.preview(told),
  executed: (told) => {
    const run = running.get(told.prompt_id)
    if (run && run.node === String(told.node)) {
      end(told.prompt_id, (listener) => listener.done(variations(told.output)))
    }
  },
  execution_error: (told) => end(told.prompt_id, (listener) => listener.failed(told.exception_message.trim())),
  execution_interrupted: (told) => end(told.prompt_id, (listener) => listener.failed(STOPPED)),
  reconnected: () => void lookUp().catch(() => {}),
}
for (const [event, listen] of Object.entries(EVENTS)) {
  api.addEventListener(event, (/** @type {any} */ { detail }) => {
    if (asked && detail?.prompt_id && !running.has(detail.prompt_id)) early.push([event, detail])
    else listen(detail)
  })
}
