{{- define "chappe.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "chappe.labels" -}}
app.kubernetes.io/name: chappe
app.kubernetes.io/part-of: chappe
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "chappe.selector" -}}
app.kubernetes.io/name: chappe
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "chappe.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "chappe.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The table of settings of a part: its address, and the files with what is secret. */}}
{{- define "chappe.parts" -}}
{{- $v := .root.Values }}
[nats]
urls = {{ toJson $v.nats.urls }}
{{- with $v.nats.credentials }}{{ if .kind }}
{{ .kind }} = "/etc/chappe/nats/{{ $.role }}"
{{- end }}{{ end }}
{{- if $v.nats.authority.secret }}
authority = "/etc/chappe/nats-authority/{{ $v.nats.authority.key }}"
{{- end }}

[redis]
url = {{ toJson $v.redis.url }}
{{- if $v.redis.user }}
user = {{ toJson $v.redis.user }}
{{- end }}
{{- if $v.redis.password.secret }}
password = "/etc/chappe/redis/{{ $v.redis.password.key }}"
{{- end }}
{{- if $v.redis.authority.secret }}
authority = "/etc/chappe/redis-authority/{{ $v.redis.authority.key }}"
{{- end }}

[cql]
url = {{ toJson $v.cql.url }}
{{- if $v.cql.user }}
user = {{ toJson $v.cql.user }}
{{- end }}
{{- if $v.cql.password.secret }}
password = "/etc/chappe/cql/{{ $v.cql.password.key }}"
{{- end }}
{{- if $v.cql.authority.secret }}
authority = "/etc/chappe/cql-authority/{{ $v.cql.authority.key }}"
{{- end }}
{{- if $v.cql.datacenter }}
datacenter = {{ toJson $v.cql.datacenter }}
{{- end }}
{{- end }}

{{- define "chappe.log" -}}
[log]
level = {{ toJson .Values.log.level }}
format = {{ toJson .Values.log.format }}
{{- end }}

{{- define "chappe.traces" -}}
{{- with .Values.traces }}{{ if .otlp }}

[traces]
otlp = {{ toJson .otlp }}
one_in = {{ .oneIn }}
{{- if .authority.secret }}
authority = "/etc/chappe/traces-authority/{{ .authority.key }}"
{{- end }}
{{- if .authorization.secret }}
authorization = "/etc/chappe/traces/{{ .authorization.key }}"
{{- end }}
{{- end }}{{ end }}
{{- end }}

{{/* What a role mounts of Secrets, by the folder below /etc/chappe: only the keys that it needs. */}}
{{- define "chappe.secrets" -}}
{{- $v := .root.Values -}}
{{- $role := ternary "gateway" .role (eq .role "doctor") }}
{{- $keys := dict "gateway" (list "admin.token" "push.key" "resume.key") "router" (list "admin.token") "pusher" (list "admin.token" "push.key") }}
{{- $found := dict "keys" (dict "secret" $v.keys.secret "keys" (index $keys $role)) }}
{{- with $v.nats.credentials }}{{ if .secret }}{{ $_ := set $found "nats" (dict "secret" .secret "keys" (list $role)) }}{{ end }}{{ end }}
{{- range $folder, $of := dict "nats-authority" $v.nats.authority "redis" $v.redis.password "redis-authority" $v.redis.authority "cql" $v.cql.password "cql-authority" $v.cql.authority }}
{{- if $of.secret }}{{ $_ := set $found $folder (dict "secret" $of.secret "keys" (list $of.key)) }}{{ end }}
{{- end }}
{{- if and $v.traces.otlp (ne $role "pusher") }}
{{- range $folder, $of := dict "traces-authority" $v.traces.authority "traces" $v.traces.authorization }}
{{- if $of.secret }}{{ $_ := set $found $folder (dict "secret" $of.secret "keys" (list $of.key)) }}{{ end }}
{{- end }}
{{- end }}
{{- if eq $role "gateway" }}
{{- if not $v.gateway.tls.behindProxy }}{{ $_ := set $found "tls" (dict "secret" $v.gateway.tls.secret "keys" (list "tls.crt" "tls.key")) }}{{ end }}
{{- with $v.token.key }}{{ if .secret }}{{ $_ := set $found "token" (dict "secret" .secret "keys" (list .key)) }}{{ end }}{{ end }}
{{- end }}
{{- if and (eq $role "pusher") $v.pusher.providersSecret }}{{ $_ := set $found "providers" (dict "secret" $v.pusher.providersSecret) }}{{ end }}
{{- toJson $found }}
{{- end }}

{{- define "chappe.mounts" -}}
- {name: settings, mountPath: /etc/chappe/settings, readOnly: true}
{{- range $folder, $of := include "chappe.secrets" . | fromJson }}
- {name: {{ $folder }}, mountPath: /etc/chappe/{{ $folder }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "chappe.volumes" -}}
- name: settings
  configMap: {name: {{ .root.Release.Name }}-{{ .settings | default .role }}}
{{- range $folder, $of := include "chappe.secrets" . | fromJson }}
- name: {{ $folder }}
  secret:
    secretName: {{ $of.secret }}
    # Readable by the group that fsGroup gives, and by nobody else: 0440.
    defaultMode: 288
    {{- with $of.keys }}
    items:
      {{- range . }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
    {{- end }}
{{- end }}
{{- end }}

{{/* Further settings as arguments: each a key of the settings file. */}}
{{- define "chappe.args" -}}
- --config
- /etc/chappe/settings/{{ .role }}.toml
{{- range $key, $value := .of.settings }}
- --set
- {{ printf "%s=%v" $key $value | quote }}
{{- end }}
{{- end }}

{{/* A Deployment of one role. */}}
{{- define "chappe.deployment" -}}
{{- $of := .of }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "chappe.labels" . | nindent 4 }}
spec:
  {{- if eq $of.autoscaling.kind "none" }}
  replicas: {{ $of.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  minReadySeconds: 5
  progressDeadlineSeconds: 900
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: {{ .surge }}, maxUnavailable: 0}
  selector:
    matchLabels: {{- include "chappe.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "chappe.labels" . | nindent 8 }}
      annotations:
        # A change of the settings is a rollout.
        chappe.dev/settings: {{ .toml | sha256sum | trunc 16 | quote }}
        {{- with $of.podAnnotations }}{{ toYaml . | nindent 8 }}{{ end }}
    spec:
      serviceAccountName: {{ .root.Release.Name }}-{{ .role }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add $of.drain.preStopSeconds $of.drain.budgetSeconds 15 }}
      securityContext: {{- include "chappe.podSecurity" . | nindent 8 }}
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets: {{- range . }}
        - name: {{ . }}{{ end }}
      {{- end }}
      {{- with $of.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $of.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $of.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $of.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - topologyKey: kubernetes.io/hostname
          maxSkew: 1
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "chappe.selector" . | nindent 14 }}
          matchLabelKeys: [pod-template-hash]
        {{- if .root.Values.zones.spread }}
        - topologyKey: topology.kubernetes.io/zone
          maxSkew: 1
          whenUnsatisfiable: DoNotSchedule
          labelSelector:
            matchLabels: {{- include "chappe.selector" . | nindent 14 }}
          matchLabelKeys: [pod-template-hash]
        {{- end }}
      containers:
        - name: {{ .role }}
          image: {{ include "chappe.image" .root }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [/usr/local/bin/{{ .role }}]
          args: {{- include "chappe.args" . | nindent 12 }}
          ports:
            {{- range .ports }}
            - {{ toJson . }}
            {{- end }}
          startupProbe:
            httpGet: {path: /healthz, port: admin}
            periodSeconds: 1
            failureThreshold: 60
          readinessProbe:
            httpGet: {path: /readyz, port: admin}
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          livenessProbe:
            httpGet: {path: /healthz, port: admin}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          {{- if gt (int $of.drain.preStopSeconds) 0 }}
          lifecycle:
            preStop:
              sleep: {seconds: {{ $of.drain.preStopSeconds }}}
          {{- end }}
          resources: {{- toYaml $of.resources | nindent 12 }}
          securityContext: {{- include "chappe.containerSecurity" . | nindent 12 }}
          volumeMounts: {{- include "chappe.mounts" . | nindent 12 }}
      volumes: {{- include "chappe.volumes" . | nindent 8 }}
{{- end }}

{{/* What a role gets beside its Deployment. */}}
{{- define "chappe.beside" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "chappe.labels" . | nindent 4 }}
data:
  {{ .role }}.toml: |
    {{- .toml | nindent 4 }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "chappe.labels" . | nindent 4 }}
automountServiceAccountToken: false
{{- if .root.Values.podDisruptionBudgets.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "chappe.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .root.Values.podDisruptionBudgets.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels: {{- include "chappe.selector" . | nindent 6 }}
{{- end }}
{{- if eq .of.autoscaling.kind "hpa" }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "chappe.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ .root.Release.Name }}-{{ .role }}}
  minReplicas: {{ .of.autoscaling.min }}
  maxReplicas: {{ .of.autoscaling.max }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .of.autoscaling.cpuPercent }}}}
    # Of the custom metrics API, such as prometheus-adapter's.
    - type: Pods
      pods: {metric: {name: {{ .metric }}}, target: {type: AverageValue, averageValue: {{ .target | quote }}}}
  behavior: {{- include "chappe.behavior" . | nindent 4 }}
{{- else if eq .of.autoscaling.kind "keda" }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .root.Release.Name }}-{{ .role }}
  labels: {{- include "chappe.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {name: {{ .root.Release.Name }}-{{ .role }}}
  minReplicaCount: {{ .of.autoscaling.min }}
  maxReplicaCount: {{ .of.autoscaling.max }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {{- include "chappe.behavior" . | nindent 8 }}
  triggers:
    - type: cpu
      metricType: Utilization
      metadata: {value: {{ .of.autoscaling.cpuPercent | quote }}}
    - type: prometheus
      metricType: AverageValue
      metadata:
        serverAddress: {{ .root.Values.keda.prometheus }}
        query: sum({{ .metric }}{namespace="{{ .root.Release.Namespace }}"})
        threshold: {{ .target | quote }}
{{- end }}
{{- end }}

{{/* Out fast, in slowly: every pod less moves its sessions. */}}
{{- define "chappe.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 30
  policies: [{type: Percent, value: 50, periodSeconds: 60}, {type: Pods, value: 2, periodSeconds: 60}]
scaleDown:
  stabilizationWindowSeconds: 1800
  policies: [{type: Pods, value: 1, periodSeconds: 300}]
{{- end }}
