package conditions

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// longestFault is how much of what is wrong with a policy is said, in bytes; the log has all.
const longestFault = 500

// Fault is a policy that does not make sense.
type Fault struct {
	Policy api.Key
	Tier   string // whose tier it is, or has come to be
	Wrong  error
}

// OfTier returns the conditions of a tier, given the faults of all.
func OfTier(name string, faults []Fault) []metav1.Condition {
	var texts []string
	for _, f := range faults {
		if f.Tier == name {
			wrong := f.Wrong.Error()
			if len(wrong) > longestFault {
				wrong = strings.ToValidUTF8(wrong[:longestFault], "") + " …"
			}
			texts = append(texts, fmt.Sprintf("%s: %s", f.Policy, wrong))
		}
	}
	if len(texts) == 0 {
		return nil
	}
	slices.Sort(texts)
	if n := len(texts); n > namedMost {
		texts = append(texts[:namedMost], fmt.Sprintf("%d policies more", n-namedMost))
	}
	return []metav1.Condition{{
		Type: api.ConditionPoliciesValid, Status: metav1.ConditionFalse, Reason: api.ReasonInvalidPolicies, Message: strings.Join(texts, "; "),
	}}
}
