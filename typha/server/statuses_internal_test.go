package server

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
)

// valid is an intake that found nothing wrong.
type valid struct{ Intake }

func (valid) Invalid() map[api.Key]error { return nil }

// What comes before all is known is not judged; when all is known it is, though nothing else comes.
func TestStatusesAreLookedAtWhenAllIsKnown(t *testing.T) {
	state := cache.New()
	s := newStatuses(Config{Cache: state, Intake: valid{}}, slog.New(slog.DiscardHandler))
	news := []chan struct{}{s.poolNews, s.nodeNews, s.tierNews}
	drain := func() (told []bool) {
		for _, c := range news {
			told = append(told, len(c) > 0)
			for len(c) > 0 {
				<-c
			}
		}
		return told
	}
	tell := func(inSync bool, changes ...cache.Change) []bool {
		state.Apply(changes, nil, inSync)
		s.changed(changes)
		return drain()
	}
	tier := &api.Tier{ObjectMeta: metav1.ObjectMeta{Name: "security"}}
	assert.Equal(t, []bool{false, false, true}, tell(false, cache.Change{Key: api.KeyOf(tier), Object: tier}))
	assert.Equal(t, []bool{false, false, false}, tell(false))
	assert.Equal(t, []bool{true, true, true}, tell(true))
	assert.Equal(t, []bool{false, false, false}, tell(true))
}
