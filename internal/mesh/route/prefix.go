package route

import "strings"

// prefixSet has buckets by the prefix of a path, without a slash at its end.
type prefixSet struct {
	buckets map[string]*bucket
	// depths has a bit for each number of segments that a prefix has, from 1.
	depths uint64
}

func (s *prefixSet) add(prefix string, b *bucket) {
	if s.buckets == nil {
		s.buckets = map[string]*bucket{}
	}
	s.buckets[prefix] = b
	if n := strings.Count(prefix, "/"); n > 0 {
		s.depths |= 1 << (n - 1)
	}
}

// find asks the prefixes of a path, the longest first.
func (s *prefixSet) find(q *search) *entry {
	if s.buckets == nil {
		return nil
	}
	path := q.req.Path
	var ends [MaxSegments]int32 // of the segments
	n := 0
	for at := 0; n < len(ends) && s.depths>>n != 0 && at < len(path) && path[at] == '/'; n++ {
		if next := strings.IndexByte(path[at+1:], '/'); next >= 0 {
			at += 1 + next
		} else {
			at = len(path)
		}
		ends[n] = int32(at)
	}
	for n--; n >= 0; n-- {
		if s.depths&(1<<n) == 0 {
			continue
		}
		prefix := path[:ends[n]]
		if !q.spend(1 + len(prefix)/32) {
			return nil
		}
		if e := s.buckets[prefix].find(q); e != nil {
			return e
		}
	}
	return s.buckets[""].find(q)
}
