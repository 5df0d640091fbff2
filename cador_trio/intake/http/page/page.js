// Shows our OpenAPI document with Swagger UI. Everything is loaded from where the page is.
"use strict";

const address = new URL("../openapi/spec.json", document.baseURI);

async function show() {
  const answer = await fetch(address);
  const spec = await answer.json();
  window.ui = SwaggerUIBundle({
    dom_id: "#swagger-ui",
    spec: {
      ...spec,
      // The bundled Swagger UI reads 3.0 only. The document keeps to what 3.0 and 3.1 have in common.
      openapi: "3.0.3",
      servers: spec.servers.map((server) => ({ ...server, url: new URL(server.url, address).href.replace(/\/$/, "") })),
    },
    validatorUrl: null, // its badge would be asked for from the internet
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis],
  });
}

show();
