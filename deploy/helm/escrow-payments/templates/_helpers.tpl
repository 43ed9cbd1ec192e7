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
{{- if not (hasPrefix "GATEWAY_" $name) }}
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
CORE_ADDRESS: dns:///{{ include "escrow.name" . }}-replicas:50051
ALLOWED_ORIGINS: {{ .Values.gateway.allowedOrigins | quote }}
{{- if .Values.secrets.gatewayToken }}
CORE_TOKEN_FILE: /run/secrets/token/token
{{- end }}
{{- if .Values.secrets.tls }}
CORE_TLS_CA_FILE: /run/secrets/core-ca/ca.crt
CORE_TLS_SERVER_NAME: {{ include "escrow.name" . }}
{{- else }}
CORE_TLS_BY_MESH: "true"
{{- end }}
{{- if .Values.secrets.gatewayTls }}
CORE_TLS_CERTIFICATE_FILE: /run/secrets/gateway-tls/tls.crt
CORE_TLS_KEY_FILE: /run/secrets/gateway-tls/tls.key
{{- end }}
{{- range $name, $value := .Values.environment }}
{{- if or (hasPrefix "GATEWAY_" $name) (hasPrefix "LOG_" $name) }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
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
