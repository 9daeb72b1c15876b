{{/* Values that contradict each other: each is legal by itself, so the schema takes them. */}}

{{- define "signet.checks" -}}
{{- $grace := mul 1000 (int64 .Values.signetd.terminationGracePeriodSeconds) -}}
{{- if ge (include "signet.milliseconds" .Values.signetd.drain | int64) $grace -}}
{{- fail (printf "signetd.drain is %s: it must be less than signetd.terminationGracePeriodSeconds, %v, after which kubelet kills it" .Values.signetd.drain .Values.signetd.terminationGracePeriodSeconds) -}}
{{- end -}}
{{- if and .Values.ca.enabled (gt (include "signet.milliseconds" .Values.signetd.svidTtl | int64) (include "signet.milliseconds" .Values.ca.maxSvidTtl | int64)) -}}
{{- fail (printf "signetd.svidTtl is %s: signet-ca signs for ca.maxSvidTtl, %s, at most" .Values.signetd.svidTtl .Values.ca.maxSvidTtl) -}}
{{- end -}}
{{- end }}

{{/* A duration, as the schema has it. */}}
{{- define "signet.milliseconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $sum = add $sum (mul (regexFind "[0-9]+" . | atoi) (get $units (regexFind "[a-z]+" .))) -}}
{{- end -}}
{{- $sum -}}
{{- end }}
