import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { credentials, Metadata, status, type ServiceError } from "@grpc/grpc-js";

import {
  FinishReason,
  GenerateRequest,
  InferenceServiceClient,
  type GenerateChunk,
  type GenerateResponse,
} from "../../proto/gen/switchyard/v1/inference.ts";
import { readModelConfig } from "../../core/model/load-config.ts";
import { DEMO_MODEL, startCluster, type Cluster } from "../../bench/rig/cluster.ts";
import { readDemoGoldens } from "../support/goldens.ts";
import { healthStatus } from "../support/health-probe.ts";
import { listServices, reflectService } from "../support/reflection-client.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";

const [facts] = await readDemoGoldens(["facts"]);
const config = await readModelConfig(DEMO_MODEL);
const expectedIds = facts.greedy.ids.slice(0, 12);

const greedy = { max_tokens: 12, temperature: 0, ignore_eos: true };

describe("the gRPC API of a router and 2 shards", () => {
  let cluster: Cluster;
  let stub: InferenceServiceClient;
  before(async () => {
    cluster = await startCluster({ shards: 2, model: DEMO_MODEL, device: "cpu" });
    stub = new InferenceServiceClient(cluster.grpcAddress, credentials.createInsecure());
  });
  after(async () => {
    stub?.close();
    await cluster?.close();
  });

  function generate(request: object): Promise<GenerateResponse> {
    return new Promise((resolve, reject) => {
      stub.generate(
        GenerateRequest.fromPartial(request),
        new Metadata(),
        { deadline: Date.now() + 30_000 },
        (error, response) => (error ? reject(error) : resolve(response)),
      );
    });
  }

  test("is listed by reflection, with the health service", async () => {
    const services = await listServices(cluster.grpcAddress);
    assert.ok(services.includes("switchyard.v1.InferenceService"), services.join());
    assert.ok(services.includes("grpc.health.v1.Health"), services.join());
  });

  test("is called by a client that has only what reflection tells", async () => {
    const service = await reflectService(cluster.grpcAddress, "switchyard.v1.InferenceService");
    try {
      const info = await service.unary("GetModelInfo", {});
      assert.equal(info.num_experts, config.numExperts);
      assert.equal(info.num_shards, 2);
      assert.equal(info.has_tokenizer, true);
      const request = { token_ids: { ids: facts.token_ids }, sampling: greedy };
      const whole = await service.unary("Generate", request);
      assert.deepEqual(whole.token_ids, expectedIds);
      const chunks = await service.stream("GenerateStream", request).toArray();
      assert.deepEqual(
        chunks.flatMap((chunk) => chunk.token_ids),
        expectedIds,
      );
      assert.equal(chunks.at(-1)?.finish_reason, "FINISH_REASON_LENGTH");
    } finally {
      service.close();
    }
  });

  test("continues token ids through the generated stubs, with usage and log-probabilities", async () => {
    const sampling = { maxTokens: 12, temperature: 0, ignoreEos: true, logprobs: 2 };
    const prompt = { $case: "tokenIds", value: { ids: [...facts.token_ids] } };
    const response = await generate({ prompt, sampling });
    assert.deepEqual(response.tokenIds, expectedIds);
    assert.ok(facts.greedy.text.startsWith(response.text));
    assert.equal(response.finishReason, FinishReason.FINISH_REASON_LENGTH);
    assert.equal(response.usage?.promptTokens, facts.token_ids.length);
    assert.equal(response.usage?.completionTokens, 12);
    assert.equal(response.logprobs.length, 12);
    for (const [i, { token, top }] of response.logprobs.entries()) {
      assert.equal(token?.tokenId, expectedIds[i]);
      assert.equal(top.length, 2);
      assert.equal(top[0].tokenId, expectedIds[i]);
    }
  });

  test("streams text of a chat whose pieces join to the whole", async () => {
    const messages = [{ role: "user", content: "Tell me about Norway." }];
    const request = {
      prompt: { $case: "chat" as const, value: { messages } },
      sampling: { maxTokens: 16, temperature: 0 },
    };
    const stream = stub.generateStream(GenerateRequest.fromPartial(request), {
      deadline: Date.now() + 30_000,
    });
    const chunks = (await stream.toArray()) as GenerateChunk[];
    const whole = await generate(request);
    assert.equal(chunks.map(({ text }) => text).join(""), whole.text);
    assert.deepEqual(
      chunks.flatMap(({ tokenIds }) => tokenIds),
      whole.tokenIds,
    );
    assert.equal(chunks.at(-1)?.usage?.completionTokens, whole.usage?.completionTokens);
  });

  test("refuses bad requests with the canonical status, naming the field", async () => {
    const rejects = async (request: object, code: status, pattern: RegExp) => {
      await assert.rejects(generate(request), (error: ServiceError) => {
        assert.equal(error.code, code, error.message);
        assert.match(error.details, pattern);
        return true;
      });
    };
    const text = { $case: "text", value: "The Battle of" };
    await rejects({}, status.INVALID_ARGUMENT, /prompt/);
    await rejects({ prompt: text, task: "Not A Label" }, status.INVALID_ARGUMENT, /task/);
    const hot = { temperature: -1 };
    await rejects({ prompt: text, sampling: hot }, status.INVALID_ARGUMENT, /temperature/);
    const stranger = { $case: "tokenIds", value: { ids: [config.vocabSize] } };
    await rejects(
      { prompt: stranger },
      status.INVALID_ARGUMENT,
      new RegExp(`${config.vocabSize}`, "u"),
    );
    const long = { $case: "tokenIds", value: { ids: Array.from({ length: 3000 }, () => 5) } };
    await rejects({ prompt: long }, status.INVALID_ARGUMENT, /2048/);
  });

  test("answers health probes, and says so when no shard is left", async () => {
    const { grpcAddress } = cluster;
    assert.equal(await healthStatus(grpcAddress, ""), "SERVING");
    assert.equal(await healthStatus(grpcAddress, "switchyard.v1.InferenceService"), "SERVING");
    assert.equal(await healthStatus(`127.0.0.1:${cluster.shards[0].ready.port}`, ""), "SERVING");
    await assert.rejects(healthStatus(grpcAddress, "no.such.Service"), { code: status.NOT_FOUND });
    for (const shard of cluster.shards) shard.kill("SIGKILL");
    await waitFor(
      "NOT_SERVING",
      async () => (await healthStatus(grpcAddress, "")) === "NOT_SERVING",
      15_000,
    );
    const prompt = { $case: "text", value: "The Battle of" };
    await assert.rejects(generate({ prompt }), { code: status.UNAVAILABLE });
  });
});
