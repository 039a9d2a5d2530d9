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
