/** The host's own modules, as its front end serves them beside the pack's. */
declare module '*/scripts/app.js' {
  export const app: any
}
declare module '*/scripts/api.js' {
  export const api: any
}
declare module '*/scripts/widgets.js' {
  export const ComfyWidgets: any
}
