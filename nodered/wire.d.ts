// What goes over the service's socket, see docs/service.md. Times are seconds since 1970.
// Written by scripts/generate-docs from sandbox/wire: change it there.

export type Outcome = "succeeded" | "failed" | "no_result" | "timed_out" | "out_of_memory" | "too_many_processes" | "output_limit" | "killed" | "cancelled";

/** Limits of one request; each may only be lower than the policy's, which holds where none is given. */
export interface Tightening {
  timeout_s?: number | null;
  memory_mib?: number | null;
  cpus?: number | null;
  processes?: number | null;
}

/** Who is told when the run has ended: an address that `webhooks.allowed` of the configuration covers. */
export interface NotifyBody {
  url: string;
}

/**
 * What a run is asked for with beside its code and its data.
 *
 * With `save_new`, each file that the program leaves in its working directory is saved.
 */
export interface RunOptions {
  topic?: string;
  node_id?: string;
  filename?: string;
  policy?: string;
  image?: string | null;
  requirements?: Array<string>;
  requires_python?: string;
  preload?: Array<string> | null;
  limits?: Tightening;
  env?: Record<string, string>;
  secrets?: Record<string, string>;
  save_new?: boolean;
}

/**
 * A run: the code, the message it runs on, and under which policy with which libraries.
 *
 * `payload` is any JSON, `message` a JSON object; `files` maps names, which may have directories, to base64;
 * `wait_for_end` lets the run go on when the client goes away; `notify` goes with `Prefer: respond-async`.
 */
export interface RunBody extends RunOptions {
  code: string;
  payload?: unknown;
  message?: Record<string, unknown>;
  files?: Record<string, string>;
  wait_for_end?: boolean;
  notify?: NotifyBody | null;
}

/** Libraries to install on a policy's base image. */
export interface EnvironmentBody {
  requirements: Array<string>;
  policy?: string;
  image?: string | null;
}

/** Code to look at, and the libraries it would run with. */
export interface CheckBody {
  code: string;
  filename?: string;
  policy?: string;
  image?: string | null;
  requirements?: Array<string>;
}

/** Which environments go: older than, unused for (seconds), or beyond a size (MiB). */
export interface PruneBody {
  older_s?: number | null;
  unused_s?: number | null;
  budget_mib?: number | null;
  dry_run?: boolean;
}

/** The exception that ended the program; `line`/`column` are the user's own, 1-based. */
export interface ProgramError {
  type: string;
  message: string;
  line: number | null;
  column: number | null;
  traceback: string;
}

/** One call of `log(message, level)`; `elapsed_s` counts from the start of the program. */
export interface LogRecord {
  level: "debug" | "error" | "info" | "warning";
  message: string;
  elapsed_s: number;
}

/** A file that a run saved, by its name. */
export interface NamedFile {
  name: string;
  size_bytes: number;
}

/** The same with its content, which is base64 on the wire. */
export interface FileDocument extends NamedFile {
  content_base64: string;
}

/**
 * One control of the policy: what was asked, what holds it, and what was read back.
 *
 * `status` is `proven` (the kernel's own account, read from outside the sandbox, agrees with the
 * specification), `fallback` (proven too, but by a weaker named mechanism), or `not_applicable`.
 */
export interface ControlEvidence {
  control: string;
  wanted: string;
  status: "fallback" | "not_applicable" | "proven";
  mechanism: string;
  evidence: string;
}

/**
 * One connection that a program asked the egress proxy for, and what became of it.
 *
 * `allowed` says whether the policy let it through; `reason` says in words why it was refused or broke off, and is
 * empty when all went well. `host` is printable, and empty when none was asked for; `address` is where it went, if
 * anywhere. `proxy` is the host's own proxy that it went through; with one and no `address`, the proxy chose that.
 */
export interface EgressRecord {
  host: string;
  port: number;
  allowed: boolean;
  reason: string;
  address: string;
  proxy: string;
  bytes_up: number;
  bytes_down: number;
}

/**
 * Where the time of one run went, in milliseconds.
 *
 * `sandbox_ms` is the wait for the sandbox: creating, starting, readying and verifying one, or taking a `warm` one,
 * which was made before anybody asked.
 */
export interface Durations {
  warm: boolean;
  queue_ms: number;
  prepare_ms: number;
  environment_ms: number;
  sandbox_ms: number;
  create_ms: number;
  start_ms: number;
  ready_ms: number;
  verify_ms: number;
  program_ms: number;
  remove_ms: number;
  total_ms: number;
}

/**
 * What was enforced during one run, and how it was known.
 *
 * `environment` and `lock_hash` name the libraries; None for a run without any.
 */
export interface Receipt {
  run_id: string;
  started_at: string;
  policy: string;
  policy_hash: string;
  image: string;
  image_digest: string;
  environment: string | null;
  lock_hash: string | null;
  code_hash: string;
  payload_hash: string;
  engine: string;
  runtime: string;
  kernel: string;
  controls: Array<ControlEvidence>;
  outcome: Outcome;
  durations: Durations;
}

/**
 * How a run ended. `result` and `additional_data` are the JSON that the program gave, untouched; None without any.
 *
 * `explanation` says in words why there is no result. `output_topic` is the topic that the program set.
 */
export interface Ending {
  run_id: string;
  outcome: Outcome;
  explanation: string;
  output_topic: string | null;
  warnings: Array<string>;
  error: ProgramError | null;
  exit_code: number | null;
  signal: string | null;
  peak_memory_mib: number | null;
  cpu_s: number | null;
  egress: Array<EgressRecord>;
  durations: Durations;
  receipt: Receipt | null;
  result: unknown;
  additional_data: unknown;
}

/** A run's whole answer. In `stdout` and `stderr`, bytes that are no UTF-8 stand as backslashes. */
export interface RunDocument extends Ending {
  stdout: string;
  stderr: string;
  logs: Array<LogRecord>;
  files: Array<FileDocument>;
}

/** A run that has not ended; its result comes from `GET /v1/runs/{id}/result`. */
export interface GoingOn {
  run_id: string;
  state: string;
}

/** A run that is being ended. */
export interface Cancelling {
  run_id: string;
  cancelling: boolean;
}

/** The exception that ended a program, as the history has it. */
export interface KeptError {
  type: string;
  message: string;
  line: number | null;
  traceback: string;
}

/** How much more there was than is kept: bytes of stdout and stderr, numbers of records. */
export interface LeftOut {
  stdout_bytes: number;
  stderr_bytes: number;
  logs: number;
}

/** What a run told, as far as the history keeps it: of each the end, without secrets. */
export interface KeptOutput {
  error: KeptError | null;
  logs: Array<LogRecord>;
  stdout: string;
  stderr: string;
  left_out: LeftOut;
}

/**
 * A run of the history, or one that goes on.
 *
 * The history does not know such a run yet: it has the first fields alone. `caller` is a user id.
 *
 * `state` is `ended`, or what goes on; `outcome` is that of the program, or the code of the error where the program
 * has none. Numbers, times and "" stand for what isn't known (yet). `payload` and `output` are there where the policy
 * has them kept.
 */
export interface RecordedRun {
  run_id: string;
  caller: number;
  caller_name: string;
  node_id: string;
  policy: string;
  requirements: string;
  received: number;
  state: string;
  outcome: string | null;
  policy_hash?: string;
  image?: string;
  environment?: string;
  preload?: string;
  code_hash?: string;
  explanation?: string;
  started?: number | null;
  ended?: number | null;
  queue_ms?: number | null;
  environment_ms?: number | null;
  sandbox_ms?: number | null;
  program_ms?: number | null;
  total_ms?: number | null;
  warm?: boolean;
  peak_memory_mib?: number | null;
  cpu_s?: number | null;
  payload_bytes?: number;
  result_bytes?: number;
  output_bytes?: number;
  files_bytes?: number;
  detached?: boolean;
  payload?: string;
  output?: KeptOutput;
}

/** Runs, newest first. */
export interface RunList {
  runs: Array<RecordedRun>;
}

/** The files of a run that are kept. */
export interface FileList {
  files: Array<NamedFile>;
}

/** Why code does not compile: where (from 1, in characters), in Python's words, and the beginning of that line. */
export interface Problem {
  line: number;
  column: number;
  message: string;
  text: string;
}

/**
 * A top-level name that the code imports and nothing has, and where first; a relative import is one, too.
 *
 * `install` is what to install for it, None where no reviewed table says so.
 */
export interface MissingModule {
  module: string;
  line: number;
  install: string | null;
}

/**
 * What is found in a piece of code; `python` is the version that it was compiled with.
 *
 * Code with a `problem` has neither `missing` nor `imports`. `missing` leaves out imports whose failure the code
 * expects. Only the first 500 imported names and 100 missing modules are listed.
 */
export interface CodeCheck {
  python: string;
  problem: Problem | null;
  missing: Array<MissingModule>;
  imports: Array<string>;
}

/** An environment that was asked for; `packages` are `name==version`. */
export interface BuiltEnvironment {
  id: string;
  image: string;
  digest: string;
  lock_hash: string;
  packages: Array<string>;
}

/**
 * An environment of the service's host; `size_bytes` is what its libraries add to the base image.
 *
 * `left_out` are the start-up files of packages that Python does not run there, each with what is lost so.
 */
export interface ListedEnvironment {
  id: string;
  image: string;
  image_id: string;
  base: string;
  base_digest: string;
  lock_hash: string;
  build_hash: string;
  packages: Array<string>;
  requirements: Array<string>;
  size_bytes: number;
  created: number;
  last_used: number;
  left_out: Array<string>;
}

/** Connections of one kind that a step of a build asked the egress proxy for; `last` is when the last one was. */
export interface BuildConnections {
  step: string;
  host: string;
  port: number;
  allowed: boolean;
  reason: string;
  address: string;
  proxy: string;
  connections: number;
  bytes_up: number;
  bytes_down: number;
  last: number;
}

/** The same with its lock, as TOML, and what its build asked the egress proxy for. */
export interface ShownEnvironment extends ListedEnvironment {
  lock: string;
  egress: Array<BuildConnections>;
}

/** Environments, most recently used first. */
export interface EnvironmentList {
  environments: Array<ListedEnvironment>;
}

/** The id of what was removed. */
export interface Removed {
  removed: string;
}

/** What went, or would go: environments by id; cached files, and their bytes. */
export interface Pruned {
  environments: Array<string>;
  files: number;
  bytes: number;
  dry_run: boolean;
}

/** How many runs were ended, and how many builds and checks beside them. */
export interface Stopped {
  stopped: number;
  builds_and_checks: number;
}

/** A policy that the caller may use. */
export interface ListedPolicy {
  name: string;
  description: string;
  hash: string;
}

/** One value of a policy, and the file that it comes from. */
export interface PolicyValue {
  key: string;
  value: unknown;
  unit: string;
  meaning: string;
  origin: string;
}

/** A policy with every value. */
export interface ShownPolicy extends ListedPolicy {
  values: Array<PolicyValue>;
}

/** The policies that the caller may use. */
export interface PolicyList {
  policies: Array<ListedPolicy>;
}

/** A built-in script. */
export interface ListedTemplate {
  name: string;
  summary: string;
}

/** A built-in script with its code and its sample payload. */
export interface ShownTemplate extends ListedTemplate {
  code: string;
  payload: unknown;
}

/** The built-in scripts. */
export interface TemplateList {
  templates: Array<ListedTemplate>;
}

/** An image of the service's host. */
export interface ListedImage {
  name: string;
  digest: string;
}

/** The images of the service's host, without environments. */
export interface ImageList {
  images: Array<ListedImage>;
}

/** How many runs go on, and how many wait for their turn. */
export interface RunCounts {
  running: number;
  waiting: number;
}

/** What the pool has, and what it has done since it began. */
export interface PoolCounts {
  ready: number;
  starting: number;
  kinds: number;
  memory_mib: number;
  started: number;
  taken: number;
  cold: number;
  retired: number;
  failed: number;
}

/** What there is of cells, and what was done since the beginning. */
export interface CellCounts {
  containers: number;
  memory_mib: number;
  cells: number;
  started: number;
  retired: number;
  broken: number;
  refused: number;
}

/** How the service is at this moment; `memory_mib` is its own process alone. */
export interface Health {
  status: "degraded" | "ok" | "stopping";
  problems: Array<string>;
  version: string;
  since: number;
  uptime_s: number;
  runs: RunCounts;
  pool: PoolCounts;
  cells: CellCounts;
  memory_mib: number;
}

/** One row of the doctor's report. `fix` is the exact command that mends it, or empty. */
export interface Capability {
  name: string;
  status: "fallback" | "missing" | "ok";
  detail: string;
  fix: string;
}

/** What the host can enforce. `policies` maps each policy to why it can't run there ("" = it can). */
export interface HostReport {
  usable: boolean;
  capabilities: Array<Capability>;
  policies: Record<string, string>;
}

/** The description of the whole interface, as OpenAPI 3.1. */
export interface Description {
  openapi: string;
  info: Record<string, unknown>;
  paths: Record<string, unknown>;
  webhooks: Record<string, unknown>;
  components: Record<string, unknown>;
}

/**
 * What went wrong and why (`message`), and what to do next (`hint`).
 *
 * `code` is stable, see docs/errors.md; `facts` depend on it.
 */
export interface ErrorBody {
  code: string;
  message: string;
  hint: string;
  run_id?: string;
  facts: Record<string, unknown>;
}

/** An answer that is an error. */
export interface ErrorDocument {
  error: ErrorBody;
}

/** The run begins; its first event. */
export interface Accepted {
  event: "accepted";
  run_id: string;
}

/**
 * A step towards the run or the environment, with its bytes if they are known.
 *
 * `text` is a short phrase for people.
 */
export interface Progressed {
  event: "progress";
  step: "downloading" | "image" | "installing" | "resolving" | "running" | "starting" | "storing";
  text: string;
  done_bytes?: number;
  total_bytes?: number;
}

/** Output; what is no UTF-8 stands in `text` as backslashes, and exactly in `base64`. */
export interface Stdout {
  event: "stdout";
  text: string;
  base64?: string;
}

/** The same of the other stream. */
export interface Stderr {
  event: "stderr";
  text: string;
  base64?: string;
}

/** One call of `log(message, level)`; `text` is the message. */
export interface Logged {
  event: "log";
  level: "debug" | "error" | "info" | "warning";
  text: string;
  elapsed_s: number;
}

/** A file that the program saved. */
export interface FileSaved extends FileDocument {
  event: "file";
}

/**
 * The last event of a run: how it ended.
 *
 * It has no output, log records and contents of files, which came before it.
 */
export interface RunEnded extends Ending {
  event: "result";
  files: Array<NamedFile>;
}

/** The last event of a build. */
export interface EnvironmentReady extends BuiltEnvironment {
  event: "result";
}

/** An error, after which nothing comes. */
export interface Failed {
  event: "error";
  error: ErrorBody;
}

/**
 * What a webhook is told: the run has ended, and `result` is the path to ask at.
 *
 * `outcome` may also be an error's code.
 */
export interface Notification {
  run_id: string;
  outcome: string;
  result: string;
}

export type RunEvent = Accepted | Progressed | Stdout | Stderr | Logged | FileSaved | RunEnded | Failed;
export type BuildEvent = Progressed | EnvironmentReady | Failed;

/** What each route takes and gives. */
export interface Routes {
  "POST /v1/runs": { body: RunBody; answer: RunDocument; events: RunEvent };
  "GET /v1/runs": { answer: RunList };
  "GET /v1/runs/{id}": { answer: RecordedRun };
  "DELETE /v1/runs/{id}": { answer: Cancelling };
  "GET /v1/runs/{id}/result": { answer: RunDocument };
  "GET /v1/runs/{id}/files": { answer: FileList };
  "GET /v1/runs/{id}/files/{name}": { answer: string };
  "POST /v1/environments": { body: EnvironmentBody; answer: BuiltEnvironment; events: BuildEvent };
  "GET /v1/environments": { answer: EnvironmentList };
  "GET /v1/environments/{id}": { answer: ShownEnvironment };
  "DELETE /v1/environments/{id}": { answer: Removed };
  "POST /v1/check": { body: CheckBody; answer: CodeCheck };
  "GET /v1/policies": { answer: PolicyList };
  "GET /v1/policies/{name}": { answer: ShownPolicy };
  "GET /v1/templates": { answer: TemplateList };
  "GET /v1/templates/{name}": { answer: ShownTemplate };
  "GET /v1/images": { answer: ImageList };
  "GET /v1/health": { answer: Health };
  "GET /v1/doctor": { answer: HostReport };
  "GET /v1/metrics": { answer: string };
  "GET /v1/openapi.json": { answer: Description };
  "POST /v1/maintenance/prune": { body?: PruneBody; answer: Pruned };
  "POST /v1/maintenance/stop-all": { answer: Stopped };
}
