package kube

import (
	"testing"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
)

func TestWhatATokenProves(t *testing.T) {
	const account = "system:serviceaccount:kube-system:calico-node"
	extra := func(pairs ...string) map[string]authenticationv1.ExtraValue {
		out := map[string]authenticationv1.ExtraValue{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = authenticationv1.ExtraValue{pairs[i+1]}
		}
		return out
	}
	of := func(user string, extra map[string]authenticationv1.ExtraValue, audiences ...string) authenticationv1.TokenReviewStatus {
		return authenticationv1.TokenReviewStatus{
			Authenticated: true, User: authenticationv1.UserInfo{Username: user, Extra: extra}, Audiences: audiences,
		}
	}
	for _, c := range []struct {
		name    string
		status  authenticationv1.TokenReviewStatus
		want    bound
		refused string
	}{
		{"bound to a node", of(account, extra(extraNode, "n1", extraPod, "p", extraPodUID, "u"), "typha"), bound{node: "n1"}, ""},
		{"of an older Kubernetes", of(account, extra(extraPod, "p", extraPodUID, "u"), "typha"), bound{namespace: "kube-system", pod: "p", uid: "u"}, ""},
		{"not known", authenticationv1.TokenReviewStatus{}, bound{}, "it is expired"},
		{"expired", authenticationv1.TokenReviewStatus{Error: "token has expired"}, bound{}, "token has expired"},
		{"for the API server", of(account, extra(extraNode, "n1")), bound{}, `not for audience "typha"`},
		{"of another account", of("system:serviceaccount:default:default", extra(extraNode, "n1"), "typha"), bound{}, "is that of system:serviceaccount:default:default"},
		{"of that account elsewhere", of("system:serviceaccount:evil:calico-node", extra(extraNode, "n1"), "typha"), bound{}, "system:serviceaccount:evil:calico-node"},
		{"bound to nothing", of(account, nil, "typha"), bound{}, "not bound to a pod"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, refused := judgeToken(c.status, account)
			require.Equal(t, c.want, got)
			if c.refused == "" {
				require.Empty(t, refused)
			} else {
				require.Contains(t, refused, c.refused)
			}
		})
	}
	for _, account := range []string{"", "calico-node", "/calico-node", "kube-system/", "a/b/c"} {
		_, err := NewTokens(API{}, account)
		require.ErrorContains(t, err, "setting node-account", account)
	}
}
