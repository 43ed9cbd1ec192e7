{{- define "escrow.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "escrow.labels" -}}
app.kubernetes.io/name: escrow-payments
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "escrow.selector" -}}
app.kubernetes.io/name: escrow-payments
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "escrow.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* What every pod has: no rights, no writable file system, no token of the cluster. */ -}}
{{- define "escrow.pod" -}}
serviceAccountName: {{ include "escrow.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "escrow.container" -}}
image: {{ include "escrow.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "escrow.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "escrow.selector" . | nindent 8 }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "escrow.selector" . | nindent 8 }}
{{- end }}

{{- /* To the service, to DNS and to the collector of traces if there is one, and nowhere else. */ -}}
{{- define "escrow.egress" -}}
- ports: [{port: 50051, protocol: TCP}]
  to:
    - podSelector:
        matchLabels: {{- include "escrow.selector" (dict "root" . "component" "service") | nindent 10 }}
- ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
{{- with .Values.environment.OTEL_EXPORTER_OTLP_ENDPOINT }}
{{- /* An empty list would let them reach everybody. */}}
{{- if not $.Values.networkPolicy.collector }}
{{- fail "networkPolicy.collector: where the collector of traces is, as peers of a NetworkPolicy" }}
{{- end }}
- ports: [{port: {{ regexFind ":[0-9]+$" (urlParse .).host | trimPrefix ":" | default "443" }}, protocol: TCP}]
  to: {{- toYaml $.Values.networkPolicy.collector | nindent 4 }}
{{- end }}
{{- end }}

{{- /* Every variable of the service that is not a secret. */ -}}
{{- define "escrow.service.environment" -}}
ENVIRONMENT: production
LOG_FORMAT: json
GRPC_HOST: "0.0.0.0"
METRICS_HOST: "0.0.0.0"
{{- if gt (int .Values.service.workers) 1 }}
WORKERS: {{ .Values.service.workers | quote }}
{{- end }}
GATEWAY_PUBLIC_URL: {{ required "gateway.publicUrl: the https address of the gateway" .Values.gateway.publicUrl | quote }}
ALLOWED_ORIGINS: {{ .Values.gateway.allowedOrigins | quote }}
STRIPE_PUBLISHABLE_KEY: {{ required "stripe.publishableKey: pk_live_… or pk_test_…" .Values.stripe.publishableKey | quote }}
STRIPE_ACCOUNTS_API: {{ .Values.stripe.accountsApi | quote }}
PLATFORM_COUNTRY: {{ .Values.platform.country | quote }}
PLATFORM_SETTLEMENT_CURRENCIES: {{ .Values.platform.settlementCurrencies | quote }}
DEFAULT_COMMISSION_BASIS_POINTS: {{ .Values.platform.commissionBasisPoints | quote }}
DATABASE_SERVICE_ROLE: {{ .Values.database.serviceRole | quote }}
{{- if .Values.database.caKey }}
DATABASE_CA_FILE: /run/secrets/database/{{ .Values.database.caKey }}
{{- end }}
STRIPE_SECRET_KEY_FILE: /run/secrets/stripe/secret-key
STRIPE_WEBHOOK_SECRET_FILE: /run/secrets/stripe/webhook-secret
STRIPE_CONNECT_WEBHOOK_SECRET_FILE: /run/secrets/stripe/connect-webhook-secret
AUTH: {{ .Values.auth.mode | quote }}
{{- if eq .Values.auth.mode "jwt" }}
AUTH_ISSUER: {{ required "auth.issuer: the iss of the callers' tokens" .Values.auth.issuer | quote }}
AUTH_JWKS: {{ required "auth.jwks: the https address of the issuer's keys" .Values.auth.jwks | quote }}
AUTH_AUDIENCE: {{ .Values.auth.audience | quote }}
{{- else }}
AUTH_CALLERS_FILE: /etc/escrow-payments/callers.json
GRPC_TLS_CLIENT_CA_FILE: /run/secrets/tls/ca.crt
{{- end }}
{{- if .Values.secrets.tls }}
GRPC_TLS_CERTIFICATE_FILE: /run/secrets/tls/tls.crt
GRPC_TLS_KEY_FILE: /run/secrets/tls/tls.key
{{- else }}
GRPC_TLS_BY_MESH: "true"
{{- end }}
{{- range $name, $value := .Values.environment }}
{{- if not (or (hasPrefix "GATEWAY_" $name) (hasPrefix "CONSOLE_" $name) (hasPrefix "RELAY_" $name)) }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* How gateway, console and relay reach the service: root, token and tls, the names of their secrets. */ -}}
{{- define "escrow.core.environment" -}}
CORE_ADDRESS: dns:///{{ include "escrow.name" .root }}-replicas:50051
{{- if .token }}
CORE_TOKEN_FILE: /run/secrets/token/token
{{- end }}
{{- if .root.Values.secrets.tls }}
CORE_TLS_CA_FILE: /run/secrets/core-ca/ca.crt
CORE_TLS_SERVER_NAME: {{ include "escrow.name" .root }}
{{- else }}
CORE_TLS_BY_MESH: "true"
{{- end }}
{{- if .tls }}
CORE_TLS_CERTIFICATE_FILE: /run/secrets/core-tls/tls.crt
CORE_TLS_KEY_FILE: /run/secrets/core-tls/tls.key
{{- end }}
{{- end }}

{{- define "escrow.core.mounts" -}}
{{- if .token }}
- {name: token, mountPath: /run/secrets/token, readOnly: true}
{{- end }}
{{- if .root.Values.secrets.tls }}
- {name: core-ca, mountPath: /run/secrets/core-ca, readOnly: true}
{{- end }}
{{- if .tls }}
- {name: core-tls, mountPath: /run/secrets/core-tls, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "escrow.core.volumes" -}}
{{- if .token }}
- name: token
  secret: {secretName: {{ .token }}, defaultMode: 0440}
{{- end }}
{{- if .root.Values.secrets.tls }}
# The authority's certificate alone, never the service's key.
- name: core-ca
  secret:
    secretName: {{ .root.Values.secrets.tls }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- if .tls }}
- name: core-tls
  secret: {secretName: {{ .tls }}, defaultMode: 0440}
{{- end }}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 16Mi}
{{- end }}

{{- /* The variables of values.yaml whose names begin with the prefix, and those that all processes get. */ -}}
{{- define "escrow.further" -}}
{{- $prefix := .prefix -}}
{{- range $name, $value := .root.Values.environment }}
{{- if or (hasPrefix $prefix $name) (hasPrefix "LOG_" $name) (hasPrefix "OTEL_" $name) }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "escrow.gateway.environment" -}}
ENVIRONMENT: production
LOG_FORMAT: json
GATEWAY_HOST: "0.0.0.0"
GATEWAY_METRICS_PORT: "9465"
GATEWAY_PUBLIC_URL: {{ .Values.gateway.publicUrl | quote }}
ALLOWED_ORIGINS: {{ .Values.gateway.allowedOrigins | quote }}
{{ include "escrow.core.environment" (dict "root" . "token" .Values.secrets.gatewayToken "tls" .Values.secrets.gatewayTls) }}
{{- include "escrow.further" (dict "root" . "prefix" "GATEWAY_") }}
{{- end }}

{{- define "escrow.console.environment" -}}
ENVIRONMENT: production
LOG_FORMAT: json
CONSOLE_HOST: "0.0.0.0"
CONSOLE_PUBLIC_URL: {{ required "console.publicUrl: the https address under which operators open the console" .Values.console.publicUrl | quote }}
CONSOLE_RUNBOOK_URL: {{ .Values.console.runbookUrl | quote }}
{{- if .Values.secrets.consoleTls }}
CONSOLE_TLS_CERTIFICATE_FILE: /run/secrets/console-tls/tls.crt
CONSOLE_TLS_KEY_FILE: /run/secrets/console-tls/tls.key
{{- else }}
CONSOLE_TLS_BY_MESH: "true"
{{- end }}
{{ include "escrow.core.environment" (dict "root" . "token" "" "tls" "") }}
{{- include "escrow.further" (dict "root" . "prefix" "CONSOLE_") }}
{{- end }}

{{- define "escrow.relay.environment" -}}
ENVIRONMENT: production
LOG_FORMAT: json
RELAY_METRICS_HOST: "0.0.0.0"
RELAY_DATABASE_URL_FILE: /run/secrets/relay/database-url
{{- if .Values.database.caKey }}
DATABASE_CA_FILE: /run/secrets/relay/{{ .Values.database.caKey }}
{{- end }}
{{- if .Values.relay.nats }}
RELAY_NATS_URL_FILE: /run/secrets/relay/nats-url
{{- end }}
{{- if .Values.relay.natsCaKey }}
RELAY_NATS_CA_FILE: /run/secrets/relay/{{ .Values.relay.natsCaKey }}
{{- end }}
{{- if .Values.relay.endpoints }}
RELAY_ENDPOINTS_FILE: /etc/escrow-payments/endpoints.json
{{- end }}
{{ include "escrow.core.environment" (dict "root" . "token" .Values.secrets.relayToken "tls" .Values.secrets.relayTls) }}
{{- include "escrow.further" (dict "root" . "prefix" "RELAY_") }}
{{- end }}

{{- /* What both the service and the migration read, beside their own address of the database. */ -}}
{{- define "escrow.service.mounts" -}}
- {name: stripe, mountPath: /run/secrets/stripe, readOnly: true}
{{- if .Values.secrets.tls }}
- {name: tls, mountPath: /run/secrets/tls, readOnly: true}
{{- end }}
{{- if eq .Values.auth.mode "mtls" }}
- {name: callers, mountPath: /etc/escrow-payments, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "escrow.service.volumes" -}}
- name: stripe
  secret: {secretName: {{ .Values.secrets.stripe }}, defaultMode: 0440}
{{- if .Values.secrets.tls }}
- name: tls
  secret: {secretName: {{ .Values.secrets.tls }}, defaultMode: 0440}
{{- end }}
{{- if eq .Values.auth.mode "mtls" }}
- name: callers
  configMap: {name: {{ include "escrow.name" . }}-callers}
{{- end }}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 16Mi}
{{- end }}
