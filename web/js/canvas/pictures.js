// @ts-check
/** Pictures of the server that were shown last, decoded; the others are let go. */
import { address } from './server.js'

const MOST = 12

export class Pictures {
  constructor() {
    /** @type {Map<string, Promise<HTMLImageElement>>} */
    this.loaded = new Map()
  }

  /**
   * Errors: one with a word for a picture that is not on the server.
   * @param {string} id
   * @param {boolean} [kept] whether it lies there for good
   * @returns {Promise<HTMLImageElement>}
   */
  load(id, kept = true) {
    const known = this.loaded.get(id)
    this.loaded.delete(id)
    const image = known ?? decoded(address(id, kept)).catch(() => {
      this.loaded.delete(id)
      throw new Error(
        'the picture of this canvas is not on this server: open the PNG or the workflow that was exported from the '
        + 'canvas, which has it inside, or drop the picture again')
    })
    this.loaded.set(id, image)
    for (const oldest of this.loaded.keys()) {
      if (this.loaded.size <= MOST) break
      this.loaded.delete(oldest)
    }
    return image
  }
}

/**
 * @param {string} source
 * @returns {Promise<HTMLImageElement>}
 */
export async function decoded(source) {
  const image = new Image()
  image.src = source
  await image.decode()
  return image
}
