{{/* One Signet per cluster, so names do not depend on the release. */}}

{{- define "signet.labels" -}}
app.kubernetes.io/part-of: signet
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "signet.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "signet.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "signet.caHost" -}}
signet-ca.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "signet.caAddress" -}}
{{- if .Values.ca.address -}}
{{ .Values.ca.address }}
{{- else if .Values.ca.enabled -}}
https://{{ include "signet.caHost" . }}:15012
{{- else -}}
{{ fail "ca.enabled is false: ca.address must say where the CA is" }}
{{- end }}
{{- end }}
