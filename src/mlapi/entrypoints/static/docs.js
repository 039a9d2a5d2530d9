// Loads the OpenAPI description relative to this page, so it works under any mount point and without another host.
const base = new URL(".", document.baseURI).href;

// Returns a token for one request, or null if the reader is no manager. Only managers can read it, on our own pages.
async function fetchPageToken() {
  try {
    const response = await fetch(`${base}console/page-token`, { redirect: "error" });
    return response.ok ? (await response.json()).token : null;
  } catch {
    return null;
  }
}

// Swagger UI has a dark mode, but does not follow the preference of the reader.
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const followPreference = () => document.documentElement.classList.toggle("dark-mode", prefersDark.matches);
prefersDark.addEventListener("change", followPreference);
followPreference();

// Swagger UI leaves some controls without a name, skips heading levels, and nests links in buttons.
const NAMES = {
  "#servers": "Server",
  ".information-container": "Description",
  ".scheme-container": "Server and authorization",
  "select": "Value",
  "tbody input": "Value",
  "textarea": "Request body",
};
function describeControls() {
  const swagger = document.getElementById("swagger-ui");
  const findAll = (selector) => swagger.querySelectorAll(selector);
  for (const [selector, name] of Object.entries(NAMES)) {
    findAll(`:is(${selector}):not([aria-label])`).forEach((element) => element.setAttribute("aria-label", name));
  }
  for (const part of findAll(":is(.information-container, .scheme-container):not([role])")) {
    part.setAttribute("role", "region");
  }
  for (const [level, selector] of [["2", "h3.opblock-tag"], ["2", ".models > h4"], ["3", ".opblock-body h4"], ["4", ".opblock-body h5"]]) {
    findAll(`${selector}:not([aria-level])`).forEach((heading) => heading.setAttribute("aria-level", level));
  }
  findAll("button a[href]").forEach((link) => link.removeAttribute("href")); // the button does the same
}
new MutationObserver(describeControls).observe(document.getElementById("swagger-ui"), { childList: true, subtree: true });

SwaggerUIBundle({
  url: `${base}openapi.json`,
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  displayOperationId: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
  validatorUrl: null,
  showMutatedRequest: false, // so that the commands for curl do not contain the token
  requestInterceptor: async (request) => {
    if (!request.loadSpec && request.url.startsWith(base)) {
      const token = await fetchPageToken();
      if (token) {
        request.headers["X-Page-Token"] = token;
      }
    }
    return request;
  },
});
