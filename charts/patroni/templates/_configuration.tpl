{{/* patroni.yml, the same for every member; what differs from pod to pod, and passwords, come by environment. */}}
{{- define "patroni.configuration" -}}
{{- $v := .Values -}}
{{- $generated := fromYaml (include "patroni.generatedConfiguration" .) -}}
{{- with $generated.Error }}{{ fail (printf "patroni.yml: %s" .) }}{{ end -}}
{{ toYaml (mergeOverwrite $generated (deepCopy $v.config)) }}
{{- end -}}

{{/* For patronictl, where it needs more: it verifies certificates and shows its own. Members ask each other without either,
     so that a certificate that has expired stops people, not a failover. */}}
{{- define "patroni.ctlConfiguration" -}}
{{- $rest := .Values.tls.rest -}}
{{- $ctl := dict "insecure" $rest.ctlInsecure "certfile" (printf "/tls/rest/%s" $rest.cert) "keyfile" (printf "/tls/rest/%s" $rest.key) -}}
{{ toYaml (mergeOverwrite (dict "ctl" $ctl) (fromYaml (include "patroni.configuration" .))) }}
{{- end -}}

{{- define "patroni.generatedConfiguration" -}}
{{- $v := .Values -}}
scope: {{ include "patroni.scope" . | quote }}
primary_role_name: {{ $v.primaryRoleName }}
log:
  level: {{ $v.sidecar.logLevel }}
  type: {{ $v.sidecar.logType }}
{{- if eq $v.shape "two-containers" }}
keeper:
  socket: /run/patroni/keeper.sock
  container: postgres
{{- end }}
restapi:
  listen: "*:{{ $v.restapi.port }}"
  {{- with $v.restapi.username }}
  authentication:
    username: {{ . | quote }}
  {{- end }}
  {{- with $v.restapi.allowlist }}
  allowlist: {{ toJson . }}
  {{- end }}
  {{- if $v.tls.rest.secret }}
  certfile: /tls/rest/{{ $v.tls.rest.cert }}
  keyfile: /tls/rest/{{ $v.tls.rest.key }}
  {{- with $v.tls.rest.ca }}
  cafile: /tls/rest/{{ . }}
  {{- end }}
  verify_client: {{ $v.tls.rest.verifyClient | quote }}
  {{- end }}
kubernetes:
  use_endpoints: {{ eq $v.mode "endpoints" }}
  labels: {{ toJson $v.kubernetes.labels }}
  scope_label: {{ $v.kubernetes.scopeLabel }}
  role_label: {{ $v.kubernetes.roleLabel }}
  leader_label_value: {{ $v.kubernetes.leaderLabelValue | quote }}
  follower_label_value: {{ $v.kubernetes.followerLabelValue | quote }}
  proof_of_death: {{ toJson $v.kubernetes.proofOfDeath }}
  {{- if eq $v.mode "endpoints" }}
  ports: [{name: postgresql, port: {{ $v.postgres.port }}}]
  {{- end }}
bootstrap:
  dcs:
    {{- toYaml $v.dynamicConfig | nindent 4 }}
  initdb:
    {{- toYaml $v.postgres.initdb | nindent 4 }}
    {{- if $v.wal.enabled }}
    - waldir: {{ include "patroni.walDir" . }}
    {{- end }}
  {{- with $v.postgres.postBootstrap }}
  post_bootstrap: {{ . | quote }}
  {{- end }}
postgresql:
  listen: "*:{{ $v.postgres.port }}"
  data_dir: {{ $v.postgres.dataDir }}
  {{- with $v.postgres.binDir }}
  bin_dir: {{ . }}
  {{- end }}
  pgpass: /run/patroni/pgpass
  {{- if $v.wal.enabled }}
  basebackup:
    - waldir: {{ include "patroni.walDir" . }}
  {{- end }}
  authentication:
    {{- range $role, $user := dict "superuser" $v.postgres.superuser "replication" $v.postgres.replicationUser "rewind" $v.postgres.rewindUser }}
    {{ $role }}:
      username: {{ $user | quote }}
      {{- if $v.tls.postgres.secret }}
      sslmode: {{ $v.tls.postgres.sslmode }}
      {{- with $v.tls.postgres.ca }}
      sslrootcert: /tls/postgres/{{ . }}
      {{- end }}
      {{- end }}
    {{- end }}
  parameters:
    {{- toYaml (mergeOverwrite (fromYaml (include "patroni.ownParameters" .)) (deepCopy $v.postgres.parameters)) | nindent 4 }}
  pg_hba:
    {{- if $v.postgres.pgHba }}
    {{- toYaml $v.postgres.pgHba | nindent 4 }}
    {{- else }}
    {{- $host := ternary "hostssl" "host" (and (not (empty $v.tls.postgres.secret)) $v.tls.postgres.require) }}
    - local all all peer
    - host all all 127.0.0.1/32 scram-sha-256
    - host all all ::1/128 scram-sha-256
    - {{ $host }} replication {{ $v.postgres.replicationUser }} all scram-sha-256
    - {{ $host }} all all all scram-sha-256
    {{- end }}
  {{- with $v.postgres.pgIdent }}
  pg_ident:
    {{- toYaml . | nindent 4 }}
  {{- end }}
watchdog:
  mode: {{ ternary $v.watchdog.mode "off" $v.watchdog.enabled | quote }}
  {{- if $v.watchdog.enabled }}
  device: {{ $v.watchdog.device }}
  safety_margin: {{ $v.watchdog.safetyMargin }}
  {{- end }}
{{- end -}}

{{- define "patroni.ownParameters" -}}
unix_socket_directories: /var/run/postgresql
password_encryption: scram-sha-256
{{- if .Values.tls.postgres.secret }}
ssl: "on"
ssl_cert_file: /tls/postgres/{{ .Values.tls.postgres.cert }}
ssl_key_file: /tls/postgres/{{ .Values.tls.postgres.key }}
{{- with .Values.tls.postgres.ca }}
ssl_ca_file: /tls/postgres/{{ . }}
{{- end }}
{{- end }}
{{- end -}}
