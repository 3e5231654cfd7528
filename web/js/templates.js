// @ts-check
/** The templates of this pack in the order of their numbers: the server lists files as its file system does. */
import { api } from '../../../scripts/api.js'

const pack = decodeURIComponent(import.meta.url.match(/\/extensions\/([^/]+)\//)?.[1] ?? '')
/** @type {() => Promise<Record<string, string[]>>} */
const listed = api.getWorkflowTemplates.bind(api)

api.getWorkflowTemplates = async () => {
  const templates = await listed()
  templates[pack]?.sort()
  return templates
}
