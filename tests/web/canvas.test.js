// @ts-check
/** The ideas of the canvas editor's page that need no page: node --test tests/web */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { deflateSync, inflateSync } from 'node:zlib'

import * as geometry from '../../web/js/canvas/geometry.js'
import { ascii, checksum, withText } from '../../web/js/canvas/png.js'
import { nodeWith, upTo } from '../../web/js/canvas/prompt.js'
import * as state from '../../web/js/canvas/state.js'

/** @param {number} i */
const file = (i) => ({ id: i.toString(16).padStart(32, '0'), width: 96, height: 64 })
/** @param {number} x */
const stroke = (x) => ({ size: 10, points: [x, 5, x + 9, 7] })

test('undo goes back over strokes and kept pictures, and redo comes again', () => {
  let line = state.timeline(state.opened(file(1)))
  /** @type {state.Document[]} */
  const seen = [line.present]
  const steps = [
    (/** @type {any} */ each) => state.painted(each, stroke(1)),
    (/** @type {any} */ each) => state.painted(each, stroke(20)),
    (/** @type {any} */ each) => state.kept(each, file(2)),
    (/** @type {any} */ each) => state.painted(each, stroke(40)),
    (/** @type {any} */ each) => state.cleared(each),
  ]
  for (const step of steps) {
    line = state.commit(line, step(line.present))
    seen.push(line.present)
  }
  for (const expected of seen.slice(0, -1).reverse()) {
    line = state.undo(line)
    assert.equal(line.present, expected)
  }
  assert.equal(state.undo(line).present, seen[0])
  for (const expected of seen.slice(1)) {
    line = state.redo(line)
    assert.equal(line.present, expected)
  }
  assert.equal(state.redo(line).present, seen[5])
})

test('a change leaves every earlier document as it was', () => {
  const first = state.painted(state.opened(file(1)), stroke(1))
  const before = JSON.stringify(first)
  state.painted(first, stroke(2))
  state.kept(first, file(2))
  state.cleared(first)
  assert.equal(JSON.stringify(first), before)
})

test('after a reload undo walks what was saved', () => {
  const saved = state.painted(state.kept(state.opened(file(1)), file(2)), stroke(3))
  let line = state.timeline(state.read(state.written(saved, state.DEFAULTS)).document)
  line = state.undo(line)
  assert.deepEqual([line.present.at, line.present.strokes.length], [1, 0])
  line = state.undo(line)
  assert.equal(state.picture(line.present)?.id, file(1).id)
  assert.equal(state.undo(line).present, line.present)
  line = state.redo(state.redo(line))
  assert.deepEqual(line.present, saved)
})

test('a kept picture ends what could have been redone', () => {
  const back = { ...state.kept(state.kept(state.opened(file(1)), file(2)), file(3)), at: 0 }
  const next = state.kept(back, file(4))
  assert.deepEqual(next.history.map((each) => each.id), [file(1).id, file(4).id])
  const line = state.commit(state.undo(state.commit(state.timeline(back), next)), next)
  assert.equal(line.future.length, 0)
})

test('what is written is read again, and stays small', () => {
  let document = state.opened(file(1))
  for (let i = 2; i < 102; i++) document = state.kept(document, file(i))
  const settings = { prompt: 'a “cat”\n', seed: 7, fixed: true, variations: 2 }
  const text = state.written(document, settings)
  assert.deepEqual(state.read(text), { document, settings, pictures: {} })
  assert.ok(text.length < 10_000)
})

test('what was damaged is an empty canvas, and never an error', () => {
  const wrong = ['', '{', 'null', '[]', '{"history":[{"id":"../x","width":1,"height":1}]}', '{"at":9,"strokes":[{}]}',
    undefined, 7]
  for (const text of wrong) assert.deepEqual(state.read(text).document, state.EMPTY, String(text))
})

test('zooming leaves the point under the pointer where it is', () => {
  const view = geometry.fitted({ width: 300, height: 200 }, { width: 640, height: 480 })
  for (const factor of [0.5, 1.25, 100, 0.0001]) {
    const before = geometry.onPicture(view, 100, 90)
    const after = geometry.onPicture(geometry.zoomed(view, factor, 100, 90), 100, 90)
    assert.ok(Math.hypot(before[0] - after[0], before[1] - after[1]) < 1e-9)
  }
})

test('a picture is shown whole and in the middle', () => {
  for (const [width, height] of [[3000, 10], [96, 96], [7, 4000]]) {
    const view = geometry.fitted({ width, height }, { width: 500, height: 400 })
    const corners = [view.x, view.y, 500 - (view.x + width * view.scale), 400 - (view.y + height * view.scale)]
    assert.ok(corners.every((room) => room > 17.9), String(corners))
    assert.ok(Math.abs(corners[0] - corners[2]) < 1e-9 && Math.abs(corners[1] - corners[3]) < 1e-9)
  }
})

test('a pointer is found on an element that is scaled', () => {
  const box = { left: 10, top: 20, width: 50, height: 25 }
  assert.deepEqual(geometry.onElement({ clientX: 35, clientY: 45 }, box, { width: 200, height: 100 }), [100, 100])
})

test('points that lie close together are left out', () => {
  /** @type {number[]} */
  const points = []
  const taken = [0, 0.5, 1.9, 2.2].map((x) => geometry.extended(points, x, 0.13, 2))
  assert.deepEqual(taken, [true, false, false, true])
  assert.deepEqual(points, [0, 0.25, 2.25, 0.25])
})

test('the box around strokes holds each of their pixels, and no more than the picture', () => {
  const size = { width: 96, height: 64 }
  assert.equal(geometry.bounds([], size), undefined)
  assert.equal(geometry.bounds([{ ...stroke(1), erase: true }], size), undefined)
  assert.deepEqual(geometry.bounds([{ size: 10, points: [50, 30] }], size), [44, 24, 12, 12])
  assert.deepEqual(geometry.bounds([{ size: 10, points: [0, 0] }], size), [0, 0, 6, 6])
  assert.deepEqual(geometry.bounds([{ size: 1, points: [], box: [90, 0, 50, 64] }], size), [90, 0, 6, 64])
  assert.deepEqual(geometry.bounds([{ size: 2, points: [50, 30], widths: [10] }], size), [44, 24, 12, 12])
})

test('edges are dragged from just outside, in whole cells, and what is added is covered', () => {
  const size = { width: 100, height: 50 }
  const view = { scale: 2, x: 40, y: 60 }
  assert.equal(geometry.edgeAt(view, size, 35, 100), 'left')
  assert.equal(geometry.edgeAt(view, size, 245, 100), 'right')
  assert.equal(geometry.edgeAt(view, size, 100, 55), 'top')
  assert.equal(geometry.edgeAt(view, size, 100, 165), 'bottom')
  for (const [x, y] of [[45, 100], [10, 100], [35, 50], [300, 300]]) {
    assert.equal(geometry.edgeAt(view, size, x, y), undefined)
  }
  const added = geometry.margins('left', -29, 5)
  assert.deepEqual(added, { left: 32, top: 0, right: 0, bottom: 0 })
  assert.deepEqual(geometry.margins('right', -50, 0).right, 0)
  assert.deepEqual(geometry.addedBoxes(size, added), [[0, 0, 40, 50]])
})

test('small pictures show the hole and its surroundings, on the canvas where it fits', () => {
  const size = { width: 100, height: 60 }
  assert.deepEqual(geometry.surroundings([40, 20, 20, 10], size), [34, 9, 32])
  assert.deepEqual(geometry.surroundings([80, 40, 20, 20], size), [68, 28, 32])
  assert.deepEqual(geometry.surroundings([0, 0, 100, 60], size), [0, -20, 100])
})

test('only what a canvas is connected to goes to the server', () => {
  /** @type {Record<string, { class_type: string, inputs: Record<string, unknown> }>} */
  const nodes = {
    1: { class_type: 'Loader', inputs: {} },
    2: { class_type: 'Canvas', inputs: { model: ['1', 0], canvas: '{"name":"abc"}' } },
    3: { class_type: 'Save', inputs: { images: ['2', 0] } },
    '7:4': { class_type: 'Canvas', inputs: { model: ['1', 0], canvas: '{}' } },
  }
  assert.equal(nodeWith(nodes, 'abc'), '2')
  assert.equal(nodeWith(nodes, 'none'), undefined)
  assert.deepEqual(Object.keys(upTo(nodes, '2')).sort(), ['1', '2'])
})

test('a text inside a PNG leaves its pixels alone and has the right checksum', () => {
  const header = [137, 80, 78, 71, 13, 10, 26, 10]
  const raw = deflateSync(Uint8Array.of(0, 1, 2, 3))
  const chunk = (/** @type {string} */ name, /** @type {Uint8Array} */ data) => {
    const body = Buffer.concat([Buffer.from(name), data])
    const ends = [Buffer.alloc(4), Buffer.alloc(4)]
    ends[0].writeUInt32BE(data.length)
    ends[1].writeUInt32BE(checksum(body))
    return Buffer.concat([ends[0], body, ends[1]])
  }
  const size = Buffer.from([0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0])
  const png = Buffer.concat([Buffer.from(header), chunk('IHDR', size), chunk('IDAT', raw), chunk('IEND', Buffer.alloc(0))])
  const text = JSON.stringify({ prompt: 'Käse “日本”' })
  const written = Buffer.from(withText(png, 'workflow', text))
  const length = written.readUInt32BE(33)
  assert.equal(written.toString('latin1', 37, 41), 'tEXt')
  const [name, value] = written.toString('latin1', 41, 41 + length).split('\0')
  assert.equal(name, 'workflow')
  assert.deepEqual(JSON.parse(value), JSON.parse(text))
  assert.deepEqual(Buffer.concat([written.subarray(0, 33), written.subarray(45 + length)]), png)
  assert.deepEqual([...inflateSync(raw)], [0, 1, 2, 3])
  assert.equal(checksum(Buffer.from('123456789')), 0xcbf43926)
  assert.ok(/^[\x20-\x7e]*$/.test(ascii(text)))
})
