/** GET /v1/models and /v1/models/{id}. */

import { checkModel, type Serving } from "./serving.ts";

/** OpenAI's model object with vLLM's max_model_len. */
export interface ModelCard {
  readonly id: string;
  readonly object: "model";
  readonly created: number;
  readonly owned_by: string;
  readonly root: string;
  readonly parent: null;
  readonly max_model_len: number;
}

/** The one model that is served, as a list. */
export function modelList(serving: Serving): { object: "list"; data: ModelCard[] } {
  return { object: "list", data: [modelCard(serving, serving.servedModelName)] };
}

/** The served model. Throws NotFoundError for any other name. */
export function modelCard(serving: Serving, id: string): ModelCard {
  checkModel(serving, id);
  return {
    id,
    object: "model",
    created: serving.startedAt,
    owned_by: "switchyard",
    root: id,
    parent: null,
    max_model_len: serving.engine.maxModelLen,
  };
}
