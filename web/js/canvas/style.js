// @ts-check
/** How the canvas looks: in the colours of the host's theme, dark or light. */
const ID = 'lazy-canvas-style'
const CSS = `
.lazy-canvas-host { display: flex; min-height: 0; }
.lazy-canvas { --line: var(--border-color, #8886); --ink: var(--input-text, #ddd); --dim: var(--descrip-text, #999);
  --field: var(--comfy-input-bg, #222); --plain: var(--comfy-menu-bg, #353535); --main: #2f7bea;
  flex: 1; min-width: 0; min-height: 0; box-sizing: border-box; position: relative; display: flex;
  flex-direction: column; gap: 6px; padding: 6px; font: 13px/1.3 system-ui, sans-serif; color: var(--ink);
  background: var(--plain); border-radius: 6px; user-select: none; }
.lazy-canvas * { box-sizing: border-box; }
.lazy-canvas-row { display: flex; align-items: center; gap: 3px; flex: none; flex-wrap: wrap; }
.lazy-canvas-gap { width: 1px; height: 18px; margin: 0 3px; background: var(--line); }
.lazy-canvas button { display: inline-flex; align-items: center; justify-content: center; gap: 5px; height: 28px;
  min-width: 28px; margin: 0; padding: 0 5px; border: 1px solid transparent; border-radius: 5px; color: inherit;
  background: none; font: inherit; cursor: pointer; }
.lazy-canvas button:hover:enabled { background: var(--field); }
.lazy-canvas button:disabled { opacity: .35; cursor: default; }
.lazy-canvas button[aria-pressed=true] { background: var(--field); border-color: var(--main); }
.lazy-canvas button.main { padding: 0 14px; color: #fff; background: var(--main); }
.lazy-canvas button.main:hover:enabled { background: #1f68d2; }
.lazy-canvas :is(button, input, select):focus-visible { outline: 2px solid var(--main); outline-offset: 1px; }
.lazy-canvas svg { width: 17px; height: 17px; fill: none; stroke: currentColor; stroke-width: 2;
  stroke-linecap: round; stroke-linejoin: round; }
.lazy-canvas :is(input, select) { height: 28px; margin: 0; border: 1px solid var(--line); border-radius: 5px;
  color: var(--ink); background: var(--field); font: inherit; }
.lazy-canvas input[type=text] { flex: 1; min-width: 80px; padding: 0 9px; }
.lazy-canvas input[type=number] { width: 98px; padding: 0 4px 0 8px; }
.lazy-canvas input[type=range] { width: 84px; padding: 0; border: 0; background: none; accent-color: var(--main); }
.lazy-canvas input[type=color] { width: 28px; padding: 2px; cursor: pointer; }
.lazy-canvas select { padding: 0 4px; }
.lazy-canvas-middle { position: relative; flex: 1; min-height: 120px; overflow: hidden; border-radius: 5px;
  border: 1px solid var(--line);
  background: repeating-conic-gradient(#8882 0 25%, #0000 0 50%) 0 0 / 20px 20px, var(--field); }
.lazy-canvas-middle:focus-within { border-color: var(--main); }
.lazy-canvas-stage { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none; cursor: crosshair; }
.lazy-canvas-keys { position: absolute; left: 8px; top: 8px; width: 1px; height: 1px; padding: 0; border: 0; opacity: 0;
  resize: none; pointer-events: none; }
.lazy-canvas-empty { position: absolute; inset: 0; display: flex; flex-direction: column; align-items: center;
  justify-content: center; gap: 10px; padding: 20px; text-align: center; color: var(--dim); }
.lazy-canvas-empty strong { color: var(--ink); font-size: 16px; font-weight: 600; }
.lazy-canvas-empty .lazy-canvas-row { justify-content: center; }
.lazy-canvas-empty button { border-color: var(--line); padding: 0 10px; color: var(--ink); }
.lazy-canvas.dragging .lazy-canvas-middle { outline: 2px dashed var(--main); outline-offset: -6px; }
.lazy-canvas-variations { display: flex; align-items: center; gap: 6px; flex: none; height: 76px; overflow-x: auto; }
.lazy-canvas-hint { flex: 1; text-align: center; color: var(--dim); opacity: .8; font-size: 12px; }
.lazy-canvas-variations button.picture { width: 76px; height: 76px; padding: 0; overflow: hidden; flex: none;
  border: 2px solid var(--line); background: var(--field); }
.lazy-canvas-variations button.picture[aria-checked=true] { border-color: var(--main); }
.lazy-canvas-variations button.picture:disabled { opacity: 1; }
.lazy-canvas-variations canvas { width: 100%; height: 100%; object-fit: contain; pointer-events: none; }
.lazy-canvas-choice { display: flex; flex-direction: column; gap: 5px; margin-left: auto; }
.lazy-canvas-choice button { border-color: var(--line); justify-content: flex-start; padding: 0 9px; }
.lazy-canvas-status { flex: none; min-height: 17px; color: var(--dim); overflow-wrap: anywhere; }
.lazy-canvas-status.bad { color: var(--error-text, #e5484d); }
.lazy-canvas-status progress { width: 120px; height: 8px; margin-right: 8px; accent-color: var(--main); }
.lazy-canvas [hidden] { display: none !important; }
dialog.lazy-canvas-full { width: 100vw; height: 100vh; max-width: none; max-height: none; margin: 0; padding: 0;
  border: 0; background: none; }
dialog.lazy-canvas-full[open] { display: flex; }
dialog.lazy-canvas-full .lazy-canvas { border-radius: 0; padding: 10px; }
`

export function addStyle() {
  if (document.getElementById(ID)) return
  const style = document.createElement('style')
  style.id = ID
  style.textContent = CSS
  document.head.append(style)
}
