{{/* Name of the cluster and of almost everything. */}}
{{- define "patroni.scope" -}}
{{- default .Release.Name .Values.scope -}}
{{- end -}}

{{- define "patroni.serviceAccount" -}}
{{- default (include "patroni.scope" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "patroni.secret" -}}
{{- default (printf "%s-credentials" (include "patroni.scope" .)) .Values.secret.existing -}}
{{- end -}}

{{- define "patroni.image" -}}
{{- printf "%s:%s" .Values.image.repository (toString (default .Chart.AppVersion .Values.image.tag)) -}}
{{- end -}}

{{- define "patroni.postgresImage" -}}
{{- printf "%s:%s" .Values.postgres.image.repository (toString .Values.postgres.image.tag) -}}
{{- end -}}

{{/* The labels members find each other by: on pods and state objects, and on nothing else of the same kind. */}}
{{- define "patroni.clusterLabels" -}}
{{- $labels := merge (dict .Values.kubernetes.scopeLabel (include "patroni.scope" .)) .Values.kubernetes.labels -}}
{{ toYaml $labels }}
{{- end -}}

{{/* Labels of an object, from (root, own labels); own ones win over commonLabels. */}}
{{- define "patroni.labels" -}}
{{- $root := index . 0 -}}
{{- $fixed := dict
  "app.kubernetes.io/name" "patroni"
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version) -}}
{{ toYaml (merge $fixed (index . 1) $root.Values.commonLabels) }}
{{- end -}}

{{/* metadata.annotations of an object from (root, own annotations). */}}
{{- define "patroni.annotations" -}}
{{- with merge (dict) (index . 1) (index . 0).Values.commonAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}

{{- define "patroni.podIPFamily" -}}
{{- default (default "IPv4" (first .Values.service.ipFamilies)) .Values.service.podIPFamily -}}
{{- end -}}

{{/* The pod's own address as it stands before a colon and a port. */}}
{{- define "patroni.podAddress" -}}
{{- if eq (include "patroni.podIPFamily" .) "IPv6" }}[$(POD_IP)]{{ else }}$(POD_IP){{ end -}}
{{- end -}}

{{/* Address families of a Service. The leader's address in Endpoints is one address of one family, so that a Service
     without a selector cannot serve two. */}}
{{- define "patroni.families" -}}
{{- $root := index . 0 -}}
{{- $single := index . 1 -}}
{{- if and $single (has $root.Values.service.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack")) }}
  ipFamilyPolicy: SingleStack
  ipFamilies: [{{ include "patroni.podIPFamily" $root }}]
{{- else }}
{{- with $root.Values.service.ipFamilyPolicy }}
  ipFamilyPolicy: {{ . }}
{{- end }}
{{- with $root.Values.service.ipFamilies }}
  ipFamilies: {{ toJson . }}
{{- end }}
{{- end -}}
{{- end -}}

{{- define "patroni.containerSecurityContext" -}}
{{- $default := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{ toYaml (mergeOverwrite $default (deepCopy .Values.containerSecurityContext)) }}
{{- end -}}

{{- define "patroni.podSecurityContext" -}}
{{- $own := dict "runAsNonRoot" true "runAsUser" .Values.postgres.uid "runAsGroup" .Values.postgres.gid -}}
{{- $own = merge $own (dict "fsGroup" .Values.postgres.gid "fsGroupChangePolicy" "OnRootMismatch") -}}
{{- $own = merge $own (dict "seccompProfile" (dict "type" "RuntimeDefault")) -}}
{{ toYaml (mergeOverwrite $own (deepCopy .Values.podSecurityContext)) }}
{{- end -}}

{{- define "patroni.walDir" -}}
{{ .Values.wal.mountPath }}/pg_wal
{{- end -}}
