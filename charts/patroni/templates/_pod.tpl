{{- define "patroni.placement" -}}
{{- $labels := fromYaml (include "patroni.clusterLabels" .) }}
{{- if .Values.affinity }}
affinity:
  {{- toYaml .Values.affinity | nindent 2 }}
{{- else if ne .Values.antiAffinity "none" }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels) }}
affinity:
  podAntiAffinity:
    {{- if eq .Values.antiAffinity "required" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - {{ toYaml $term | nindent 8 | trim }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          {{- toYaml $term | nindent 10 }}
    {{- end }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml (merge (dict) . (dict "labelSelector" (dict "matchLabels" $labels))) | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end -}}

{{- define "patroni.volumes" -}}
- name: bin
  emptyDir: {}
# The keeper's socket and the password file of replication.
- name: run
  emptyDir: {}
- name: sockets
  emptyDir: {}
- name: tmp
  emptyDir: {}
- name: shm
  emptyDir:
    medium: Memory
    {{- with .Values.postgres.shmSize }}
    sizeLimit: {{ . }}
    {{- end }}
- name: settings
  configMap:
    name: {{ include "patroni.scope" . }}-settings
{{- if .Values.tls.postgres.secret }}
- name: tls-postgres
  secret:
    secretName: {{ .Values.tls.postgres.secret }}
    # Postgres refuses a key that others can read.
    defaultMode: 0640
{{- end }}
{{- if .Values.tls.rest.secret }}
- name: tls-rest
  secret:
    secretName: {{ .Values.tls.rest.secret }}
    defaultMode: 0640
{{- end }}
{{- if and .Values.watchdog.enabled .Values.watchdog.hostPath }}
- name: watchdog
  hostPath:
    path: {{ .Values.watchdog.hostPath }}
    type: CharDevice
{{- end }}
{{- if not .Values.persistence.enabled }}
{{- include "patroni.emptyDir" (list "data" .Values.persistence.size) }}
{{- if .Values.wal.enabled }}
{{- include "patroni.emptyDir" (list "wal" .Values.wal.size) }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "patroni.emptyDir" }}
- name: {{ index . 0 }}
  {{- if index . 1 }}
  emptyDir:
    sizeLimit: {{ index . 1 }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end -}}

{{- define "patroni.claim" -}}
{{- $root := index . 0 -}}
{{- $v := index . 2 -}}
- metadata:
    name: {{ index . 1 }}
    labels:
      {{- include "patroni.clusterLabels" $root | nindent 6 }}
    {{- with $v.annotations }}
    annotations:
      {{- toYaml . | nindent 6 }}
    {{- end }}
  spec:
    accessModes: {{ toJson $v.accessModes }}
    {{- with $v.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ $v.size }}
{{- end -}}
