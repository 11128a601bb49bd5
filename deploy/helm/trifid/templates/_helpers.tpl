{{/* Names and what all pods share. */}}
{{- define "trifid.name" -}}
{{- if contains "trifid" .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- else -}}{{ printf "%s-trifid" .Release.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "trifid.selector" -}}
app.kubernetes.io/name: trifid
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "trifid.labels" -}}
{{ include "trifid.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "trifid.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "trifid.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "trifid.env" -}}
{{- range .root.Values.secrets }}
- name: {{ .variable }}
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
{{- end }}
{{- end }}

{{- define "trifid.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if or .root.Values.tls.secret .root.Values.tls.configMap }}
- {name: tls, mountPath: /etc/trifid/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "trifid.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 512Mi}
{{- if .root.Values.tls.secret }}
- name: tls
  secret: {secretName: {{ .root.Values.tls.secret }}, defaultMode: 0440}
{{- else if .root.Values.tls.configMap }}
- name: tls
  configMap: {name: {{ .root.Values.tls.configMap }}}
{{- end }}
{{- end }}

{{- define "trifid.pod" -}}
serviceAccountName: {{ include "trifid.name" .root }}
automountServiceAccountToken: false
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}
