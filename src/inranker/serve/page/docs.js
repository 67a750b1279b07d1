"use strict";

// The OpenAPI document as a page, without anything fetched from elsewhere.

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function resolve(schema, api) {
  return schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema || {};
}

function nameOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" or ");
  if (schema.anyOf) return schema.anyOf.map(nameOf).join(" or ");
  if (schema.type === "array") return `list of ${nameOf(schema.items || {})}`;
  return schema.type || "anything";
}

function table(head, rows) {
  const row = (cell, values) => make("tr", {}, ...values.map((v) => make(cell, {}, v)));
  return make("div", { className: "scroll" }, make("table", {}, row("th", head), ...rows.map((r) => row("td", r))));
}

function fields(schema) {
  const required = new Set(schema.required || []);
  return table(
    ["field", "type", "", ""],
    Object.entries(schema.properties || {}).map(([name, field]) => [
      name,
      nameOf(field),
      required.has(name) ? "required" : field.default == null ? "" : `default ${JSON.stringify(field.default)}`,
      field.description || "",
    ]),
  );
}

const EXAMPLES = {
  "/v2/rerank": { model: "any", query: "red fox", documents: ["a lazy dog", "the red fox"], top_n: 1 },
  "/v1/rerank": { model: "any", query: "red fox", documents: ["a lazy dog", "the red fox"], return_documents: true },
  "/rerank": { query: "red fox", texts: ["a lazy dog", "the red fox"] },
  "/score": { queries: "red fox", documents: ["a lazy dog", "the red fox"] },
  "/search": { query: "red fox", depth: 20 },
};

function operation(path, method, about, api) {
  const parts = [make("h2", {}, make("b", {}, method.toUpperCase()), path), make("p", {}, about.summary || "")];
  if (EXAMPLES[path]) {
    const key = about.security ? ' \\\n  -H "authorization: Bearer $INRANKER_API_KEY"' : "";
    const body = ` \\\n  -H "content-type: application/json"${key} \\\n  -d '${JSON.stringify(EXAMPLES[path])}'`;
    parts.push(make("pre", {}, `curl ${location.origin}${path}${body}`));
  }
  const given = about.requestBody?.content["application/json"].schema;
  const shapes = given ? (given.anyOf || [given]).flatMap((s) => resolve(s, api).anyOf || [s]) : [];
  for (const shape of shapes) {
    const schema = resolve(shape, api);
    parts.push(make("h3", {}, schema.description || nameOf(shape)), fields(schema));
  }
  const answers = Object.entries(about.responses).map(([status, { description, content }]) => [
    status,
    nameOf(content?.["application/json"]?.schema || { type: Object.keys(content || {})[0] }),
    description,
  ]);
  parts.push(make("h3", {}, "Answers"), table(["status", "body", ""], answers));
  return make("article", {}, ...parts);
}

async function start() {
  const main = document.getElementById("operations");
  try {
    const api = await (await fetch("openapi.json")).json();
    const all = Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, about]) => operation(path, method, about, api)),
    );
    main.replaceChildren(...all);
  } catch {
    main.replaceChildren(make("p", { role: "alert" }, "The server does not answer."));
  }
}

start();
