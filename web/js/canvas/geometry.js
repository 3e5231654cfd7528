// @ts-check
/** Where things lie: the picture on the stage, boxes around strokes, the picture's edges under the pointer. */

/** @typedef {{ scale: number, x: number, y: number }} View  stage = picture × scale + (x, y) */
/** @typedef {{ width: number, height: number }} Size */
/** @typedef {{ left: number, top: number, right: number, bottom: number }} Margins */
/** @typedef {keyof Margins} Edge */
/** @typedef {import('./state.js').Stroke} Stroke */

const MOST_ZOOM = 32
const LEAST_ZOOM = 0.02
const BORDER = 18 // of the stage around a picture that is shown whole: its edges can be dragged there
const AROUND = 1.6 // times the hole: what small pictures show
const STEP = 8 // px by which a canvas grows: whole cells of every latent space

/**
 * The whole picture in the middle of the stage; a small one is enlarged.
 * @param {Size} picture
 * @param {Size} stage
 * @returns {View}
 */
export function fitted(picture, stage) {
  const room = { width: Math.max(stage.width - 2 * BORDER, 1), height: Math.max(stage.height - 2 * BORDER, 1) }
  const scale = Math.min(room.width / picture.width, room.height / picture.height, MOST_ZOOM)
  return { scale, x: (stage.width - picture.width * scale) / 2, y: (stage.height - picture.height * scale) / 2 }
}

/**
 * Closer by a factor; what is at a point of the stage stays there.
 * @param {View} view
 * @param {number} factor
 * @param {number} x
 * @param {number} y
 * @returns {View}
 */
export function zoomed(view, factor, x, y) {
  const scale = Math.min(Math.max(view.scale * factor, LEAST_ZOOM), MOST_ZOOM)
  const by = scale / view.scale
  return { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by }
}

/** @type {(view: View, dx: number, dy: number) => View} */
export const panned = (view, dx, dy) => ({ ...view, x: view.x + dx, y: view.y + dy })

/**
 * A point of the stage on the picture.
 * @type {(view: View, x: number, y: number) => [number, number]}
 */
export const onPicture = (view, x, y) => [(x - view.x) / view.scale, (y - view.y) / view.scale]

/**
 * A pointer's place on an element whatever transforms the page has put on it.
 * @param {{ clientX: number, clientY: number }} pointer
 * @param {{ left: number, top: number, width: number, height: number }} box on the screen
 * @param {Size} size of the element itself
 * @returns {[number, number]}
 */
export const onElement = (pointer, box, size) => [
  ((pointer.clientX - box.left) * size.width) / (box.width || 1),
  ((pointer.clientY - box.top) * size.height) / (box.height || 1),
]

/**
 * A point goes to a stroke's end, unless it lies closer than `least` to the last one. To a quarter of a pixel.
 * @param {number[]} points
 * @param {number} x
 * @param {number} y
 * @param {number} least
 */
export function extended(points, x, y, least) {
  const [px, py] = points.slice(-2)
  if (points.length && Math.hypot(x - px, y - py) < least) return false
  points.push(Math.round(x * 4) / 4, Math.round(y * 4) / 4)
  return true
}

/**
 * The box of whole pixels around all that strokes touch of a picture: x, y, width, height.
 * @param {readonly Stroke[]} strokes
 * @param {Size} size
 * @returns {[number, number, number, number] | undefined} none where nothing is painted
 */
export function bounds(strokes, size) {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity]
  for (const { erase, box, points, size: width, widths } of strokes) {
    if (erase) continue
    if (box) {
      left = Math.min(left, box[0]), right = Math.max(right, box[0] + box[2])
      top = Math.min(top, box[1]), bottom = Math.max(bottom, box[1] + box[3])
    }
    const reach = Math.max(width, ...(widths ?? [])) / 2 + 1
    for (let i = 0; i < points.length; i += 2) {
      left = Math.min(left, points[i] - reach), right = Math.max(right, points[i] + reach)
      top = Math.min(top, points[i + 1] - reach), bottom = Math.max(bottom, points[i + 1] + reach)
    }
  }
  left = Math.max(Math.floor(left), 0), top = Math.max(Math.floor(top), 0)
  right = Math.min(Math.ceil(right), size.width), bottom = Math.min(Math.ceil(bottom), size.height)
  return right > left && bottom > top ? [left, top, right - left, bottom - top] : undefined
}

/**
 * The edge of the picture that a point of the stage lies just outside of.
 * @param {View} view
 * @param {Size} picture
 * @param {number} x
 * @param {number} y
 * @returns {Edge | undefined}
 */
export function edgeAt(view, picture, x, y) {
  const right = view.x + picture.width * view.scale
  const bottom = view.y + picture.height * view.scale
  if (y >= view.y && y <= bottom) {
    if (x < view.x && x > view.x - BORDER) return 'left'
    if (x > right && x < right + BORDER) return 'right'
  }
  if (x >= view.x && x <= right) {
    if (y < view.y && y > view.y - BORDER) return 'top'
    if (y > bottom && y < bottom + BORDER) return 'bottom'
  }
  return undefined
}

/**
 * By how much a canvas grows when an edge is dragged by so many pixels of the picture.
 * @param {Edge} edge
 * @param {number} dx
 * @param {number} dy
 * @returns {Margins}
 */
export function margins(edge, dx, dy) {
  const by = { left: -dx, right: dx, top: -dy, bottom: dy }[edge]
  return { left: 0, top: 0, right: 0, bottom: 0, [edge]: Math.max(Math.round(by / STEP) * STEP, 0) }
}

/**
 * The square that small pictures show of a canvas: the hole and what lies around it, on the canvas if it fits.
 * @param {readonly number[]} hole x, y, width, height
 * @param {Size} size
 * @returns {[number, number, number]} x, y, side
 */
export function surroundings(hole, size) {
  const side = Math.min(Math.max(hole[2], hole[3]) * AROUND, Math.max(size.width, size.height))
  const place = (/** @type {number} */ first, /** @type {number} */ length, /** @type {number} */ whole) =>
    side > whole ? (whole - side) / 2 : Math.min(Math.max(first + length / 2 - side / 2, 0), whole - side)
  return [place(hole[0], hole[2], size.width), place(hole[1], hole[3], size.height), side]
}

/**
 * Boxes that cover what was added to a picture, and a little of what was there, for a soft passage.
 * @param {Size} picture as it was
 * @param {Margins} added
 * @param {number} [overlap]
 * @returns {number[][]} x, y, width, height on the larger picture
 */
export function addedBoxes(picture, added, overlap = STEP) {
  const width = picture.width + added.left + added.right
  const height = picture.height + added.top + added.bottom
  /** @type {number[][]} */
  const boxes = []
  if (added.left) boxes.push([0, 0, added.left + overlap, height])
  if (added.right) boxes.push([width - added.right - overlap, 0, added.right + overlap, height])
  if (added.top) boxes.push([0, 0, width, added.top + overlap])
  if (added.bottom) boxes.push([0, height - added.bottom - overlap, width, added.bottom + overlap])
  return boxes
}
