// @ts-check
/** The signs on the buttons, as lines in a square of 24. */
const SVG = 'http://www.w3.org/2000/svg'

/** @type {Record<string, string>} */
const PATHS = {
  brush: 'M4 20c3 0 5-1 5-4a2.5 2.5 0 0 0-5-.5c0 2-1 3-2 3.5M9.5 13.5 19 3.5a1.8 1.8 0 0 1 2.5 2.5l-10 9.5',
  eraser: 'M8 20h13M4.5 14.5 14 5a2 2 0 0 1 2.8 0l3.2 3.2a2 2 0 0 1 0 2.8l-9 9H8l-3.5-2.7a2 2 0 0 1 0-2.8zM9.5 9.5l6 6',
  sketch: 'M12 3a9 9 0 1 0 0 18c2 0 2.5-1.5 1.5-2.8S14 15 16 15h2.5A2.5 2.5 0 0 0 21 12a9 9 0 0 0-9-9z'
    + 'M7.5 12h.01M10 7.5h.01M15 7.5h.01',
  undo: 'M8 5 3.5 9.5 8 14M4 9.5h10a6 6 0 0 1 0 12h-3',
  redo: 'm16 5 4.5 4.5L16 14m4-4.5H10a6 6 0 0 0 0 12h3',
  clear: 'M4 7h16M9 7V4h6v3M6 7l1 14h10l1-14M10 11v6M14 11v6',
  fit: 'M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5',
  full: 'M3 5h18v14H3zM7 9h10v6H7z',
  compare: 'M12 3v18M4 5h5v14H4zM15 5h5v14h-5',
  open: 'M3 19V5h6l2 3h10v11zM12 17v-6M9.5 13 12 10.5l2.5 2.5',
  blank: 'M6 3h8l4 4v14H6zM14 3v4h4M12 11v6M9 14h6',
  save: 'M12 3v12M7 11l5 5 5-5M4 20h16',
  keep: 'm4 13 5 5L20 6',
  discard: 'm6 6 12 12M18 6 6 18',
  lock: 'M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3',
  stop: 'M6 6h12v12H6z',
}

/** @param {string} name */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg')
  svg.setAttribute('viewBox', '0 0 24 24')
  svg.setAttribute('aria-hidden', 'true')
  const path = document.createElementNS(SVG, 'path')
  path.setAttribute('d', PATHS[name])
  svg.append(path)
  return svg
}
