{{/* Environment from the Secret and the pod. Order matters: $(POD_IP) is known only after POD_IP. */}}
{{- define "patroni.memberEnv" -}}
{{- $secret := include "patroni.secret" . -}}
- name: PATRONI_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: PATRONI_KUBERNETES_POD_IP
  value: $(POD_IP)
- name: PATRONI_POSTGRESQL_CONNECT_ADDRESS
  value: "{{ include "patroni.podAddress" . }}:{{ .Values.postgres.port }}"
- name: PATRONI_RESTAPI_CONNECT_ADDRESS
  value: "{{ include "patroni.podAddress" . }}:{{ .Values.restapi.port }}"
{{- range $role := list "superuser" "replication" "rewind" }}
- name: PATRONI_{{ upper $role }}_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ get $.Values.secret.keys $role }}}}
{{- end }}
{{- end -}}

{{/* What patronictl needs, in whichever container it is called. */}}
{{- define "patroni.ctlEnv" -}}
- name: PATRONICTL_CONFIG_FILE
  value: /etc/patroni/{{ ternary "patronictl" "patroni" (not (empty .Values.tls.rest.secret)) }}.yml
- name: PATRONI_KUBERNETES_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- if .Values.restapi.username }}
- name: PATRONI_RESTAPI_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "patroni.secret" . }}, key: {{ .Values.secret.keys.restapi }}}}
{{- end }}
{{- end -}}

{{- define "patroni.postgresEnv" -}}
- name: PGDATA
  value: {{ .Values.postgres.dataDir }}
- name: HOME
  value: /tmp
{{- with .Values.postgres.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Mounts that Postgres and the sidecar have in common, at the same place: each works on the files of the other. */}}
{{- define "patroni.commonMounts" -}}
- name: data
  mountPath: {{ .Values.postgres.dataMountPath }}
{{- if .Values.wal.enabled }}
- name: wal
  mountPath: {{ .Values.wal.mountPath }}
{{- end }}
- name: run
  mountPath: /run/patroni
- name: sockets
  mountPath: /var/run/postgresql
- name: settings
  mountPath: /etc/patroni
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if .Values.tls.postgres.secret }}
- name: tls-postgres
  mountPath: /tls/postgres
  readOnly: true
{{- end }}
{{- if .Values.tls.rest.secret }}
- name: tls-rest
  mountPath: /tls/rest
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "patroni.postgresMounts" -}}
{{ include "patroni.commonMounts" . }}
- name: shm
  mountPath: /dev/shm
- name: bin
  mountPath: /patroni-bin
  readOnly: true
# A file of its own, so that patronictl is in PATH whatever the image says PATH is.
- name: bin
  mountPath: {{ .Values.postgres.patronictlPath }}
  subPath: patronictl
  readOnly: true
{{- end -}}

{{- define "patroni.probe" -}}
{{- $root := index . 0 -}}
httpGet:
  path: {{ index . 1 }}
  port: rest
  scheme: {{ ternary "HTTPS" "HTTP" (not (empty $root.Values.tls.rest.secret)) }}
{{ toYaml (index . 2) }}
{{- end -}}

{{- define "patroni.checkScript" -}}
uid=$(id -u)
fail() { echo "check: $*" >&2; exit 1; }
id -un >/dev/null 2>&1 ||
  fail "the pod runs as user $uid, but {{ include "patroni.postgresImage" . }} has no user with this number; its user postgres has" \
       "$(id -u postgres 2>/dev/null || echo none). Set postgres.uid and postgres.gid (runAsUser, runAsGroup, fsGroup)."
command -v {{ with .Values.postgres.binDir }}{{ . }}/{{ end }}postgres >/dev/null ||
  fail "no program postgres in {{ default "PATH ($PATH)" .Values.postgres.binDir }}. Set postgres.binDir (postgresql.bin_dir)."
parent=$(dirname "$PGDATA")
mkdir -p "$parent" 2>/dev/null || fail "user $uid cannot make $parent: the volume must be writable for group $(id -g)."
for dir in "$parent"{{ if .Values.wal.enabled }} {{ .Values.wal.mountPath }}{{ end }}; do
  [ -w "$dir" ] || fail "user $uid cannot write to $dir: the volume must be writable for group $(id -g)."
done
if [ -e "$PGDATA" ]; then
  owner=$(stat -c %u "$PGDATA")
  [ "$owner" = "$uid" ] || fail "$PGDATA belongs to user $owner, but the pod runs as $uid: Postgres will not start on it."
fi
{{- end -}}

{{- define "patroni.initContainers" -}}
- name: install
  image: {{ include "patroni.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/usr/local/bin/postgres-keeper, install, /patroni-bin]
  securityContext:
    {{- include "patroni.containerSecurityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
  volumeMounts:
    - name: bin
      mountPath: /patroni-bin
{{- if .Values.postgres.check }}
- name: check
  image: {{ include "patroni.postgresImage" . }}
  imagePullPolicy: {{ .Values.postgres.image.pullPolicy }}
  command:
    - sh
    - -euc
    - |
      {{- include "patroni.checkScript" . | nindent 6 }}
  env:
    - name: PGDATA
      value: {{ .Values.postgres.dataDir }}
  securityContext:
    {{- include "patroni.containerSecurityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
  volumeMounts:
    - name: data
      mountPath: {{ .Values.postgres.dataMountPath }}
    {{- if .Values.wal.enabled }}
    - name: wal
      mountPath: {{ .Values.wal.mountPath }}
    {{- end }}
{{- end }}
{{- with .Values.initContainers }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "patroni.twoContainers" -}}
- name: postgres
  image: {{ include "patroni.postgresImage" . }}
  imagePullPolicy: {{ .Values.postgres.image.pullPolicy }}
  # No probe: whether Postgres must be restarted is decided by the sidecar.
  command:
    - /patroni-bin/postgres-keeper
    - --socket
    - /run/patroni/keeper.sock
    - --grace
    - {{ .Values.terminationGracePeriodSeconds | quote }}
  env:
    {{- include "patroni.postgresEnv" . | nindent 4 }}
    {{- include "patroni.ctlEnv" . | nindent 4 }}
  ports:
    - name: postgresql
      containerPort: {{ .Values.postgres.port }}
      protocol: TCP
  securityContext:
    {{- include "patroni.containerSecurityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.postgres.resources | nindent 4 }}
  volumeMounts:
    {{- include "patroni.postgresMounts" . | nindent 4 }}
- name: patroni
  image: {{ include "patroni.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/usr/local/bin/patroni, /etc/patroni/patroni.yml]
  env:
    {{- include "patroni.memberEnv" . | nindent 4 }}
    {{- include "patroni.ctlEnv" . | nindent 4 }}
    - name: HOME
      value: /tmp
    {{- with .Values.sidecar.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: rest
      containerPort: {{ .Values.restapi.port }}
      protocol: TCP
  startupProbe:
    {{- include "patroni.probe" (list . "/liveness" .Values.probes.startup) | nindent 4 }}
  livenessProbe:
    {{- include "patroni.probe" (list . "/liveness" .Values.probes.liveness) | nindent 4 }}
  readinessProbe:
    {{- include "patroni.probe" (list . .Values.probes.readinessPath .Values.probes.readiness) | nindent 4 }}
  securityContext:
    {{- if and .Values.watchdog.enabled .Values.watchdog.hostPath }}
    # A device of the node cannot be opened without; only this container is.
    privileged: true
    readOnlyRootFilesystem: true
    {{- else }}
    {{- include "patroni.containerSecurityContext" . | nindent 4 }}
    {{- end }}
  resources:
    {{- include "patroni.sidecarResources" . | nindent 4 }}
  volumeMounts:
    {{- include "patroni.commonMounts" . | nindent 4 }}
    {{- include "patroni.watchdogMount" . }}
{{- end -}}

{{- define "patroni.oneContainer" -}}
- name: postgres
  image: {{ include "patroni.postgresImage" . }}
  imagePullPolicy: {{ .Values.postgres.image.pullPolicy }}
  command: [/patroni-bin/patroni, /etc/patroni/patroni.yml]
  env:
    {{- include "patroni.memberEnv" . | nindent 4 }}
    {{- include "patroni.ctlEnv" . | nindent 4 }}
    {{- include "patroni.postgresEnv" . | nindent 4 }}
    {{- with .Values.sidecar.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: postgresql
      containerPort: {{ .Values.postgres.port }}
      protocol: TCP
    - name: rest
      containerPort: {{ .Values.restapi.port }}
      protocol: TCP
  # Neither liveness nor startup probe: the kubelet would restart Postgres together with patroni.
  readinessProbe:
    {{- include "patroni.probe" (list . .Values.probes.readinessPath .Values.probes.readiness) | nindent 4 }}
  securityContext:
    {{- if and .Values.watchdog.enabled .Values.watchdog.hostPath }}
    # A device of the node cannot be opened without.
    privileged: true
    readOnlyRootFilesystem: true
    {{- else }}
    {{- include "patroni.containerSecurityContext" . | nindent 4 }}
    {{- end }}
  resources:
    {{- include "patroni.sidecarResources" . | nindent 4 }}
  volumeMounts:
    {{- include "patroni.postgresMounts" . | nindent 4 }}
    {{- include "patroni.watchdogMount" . }}
{{- end -}}

{{/* Resources of the container that runs patroni, with the watchdog of a device plugin. */}}
{{- define "patroni.sidecarResources" -}}
{{- $resources := deepCopy (ternary .Values.sidecar.resources .Values.postgres.resources (eq .Values.shape "two-containers")) -}}
{{- if and .Values.watchdog.enabled .Values.watchdog.resource -}}
{{- $resources = mergeOverwrite (dict "limits" (dict .Values.watchdog.resource 1)) $resources -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{- define "patroni.watchdogMount" -}}
{{- if and .Values.watchdog.enabled .Values.watchdog.hostPath }}
    - name: watchdog
      mountPath: {{ .Values.watchdog.device }}
{{- end }}
{{- end -}}
