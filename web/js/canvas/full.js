// @ts-check
/** A canvas over the whole window, and back in its node. */

export class FullWindow {
  /**
   * @param {HTMLElement} content
   * @param {() => boolean} escape whether Esc has something else to end first
   */
  constructor(content, escape) {
    this.content = content
    this.escape = escape
    /** @type {HTMLElement | undefined} where the content comes from */
    this.home = undefined
    this.dialog = document.createElement('dialog')
    this.dialog.className = 'lazy-canvas-full'
    this.dialog.addEventListener('cancel', (event) => {
      event.preventDefault()
      if (!this.escape()) this.toggle()
    })
  }

  get open() {
    return this.home !== undefined
  }

  toggle() {
    if (this.home) {
      this.dialog.close()
      this.dialog.remove()
      this.home.append(this.content)
      this.home = undefined
      return
    }
    this.home = /** @type {HTMLElement} */ (this.content.parentElement)
    document.body.append(this.dialog)
    this.dialog.append(this.content)
    this.dialog.showModal()
  }

  remove() {
    if (this.home) this.toggle()
  }
}
