// What stands between s = q . k and the softmax, forward and backward: steps that follow one another, a compile-time
// list of types. The file that includes this has included them, and `Components`, what they are told.
//
// A step takes numbers x and makes others, each kind in a unit of its own: unit * x is a score in log2 units, and what
// one makes has the unit that its unit() says, above 0. Nothing is multiplied that need not be: row maxima are taken of
// what the last step makes, and 2^(unit * x - ...) is one multiply-add and one ex2. A step is
//
//   Step(params, place, unit)        of what comes in; of q . k itself there is none
//   unit()
//   Row<Columns>(step, query, head, columns)   for one query, and the keys columns(j) of a lane; heads count from
//                                    place.head; it keeps `columns`, if at all, as a copy. UniformRow, if forward(x)
//                                    and backward(dy, x) are all there is
//     forward(x, j)
//     backward(dy, x, j)             d loss / d x from d loss / d forward(x), both by natural scores (of the first
//                                    step: by natural scores and by q . k)
//     term(dy, j)                    of a step that learns: d loss / d its parameter that this score has
#pragma once
#include "attention/place.cuh"

template <class Accumulator, template <class> class... Steps>
struct ScoreOf;

template <class Accumulator, template <class> class First, template <class> class... Rest>
struct ScoreOf<Accumulator, First, Rest...> {
  static constexpr bool kMakesAnything = (::kMakesAnything<First> || ... || ::kMakesAnything<Rest>);
  First<Accumulator> first;
  ScoreOf<Accumulator, Rest...> rest;

  __device__ ScoreOf(const Components& params, const Place& place, Accumulator unit = 1)
      : first(params, place, unit), rest(params, place, first.unit()) {}

  __device__ Accumulator unit() const { return rest.unit(); }

  // Of the last step: in how many places arrays enter the score, and what ends their gradients (attention/gather.cuh).
  __device__ static constexpr int sites() {
    if constexpr (sizeof...(Rest) == 0) {
      return First<Accumulator>::kSites;
    } else {
      return ScoreOf<Accumulator, Rest...>::sites();
    }
  }
  template <class Sites>
  __device__ static void finish(Sites& sites, const Components& params) {
    if constexpr (sizeof...(Rest) == 0) {
      First<Accumulator>::finish(sites, params);
    } else {
      ScoreOf<Accumulator, Rest...>::finish(sites, params);
    }
  }

  template <class Columns>
  struct Row {
    typename First<Accumulator>::template Row<Columns> first;
    typename ScoreOf<Accumulator, Rest...>::template Row<Columns> rest;

    __device__ Row(const ScoreOf& score, int query, int head, const Columns& columns)
        : first(score.first, query, head, columns), rest(score.rest, query, head, columns) {}

    __device__ Accumulator forward(Accumulator s, int j) const { return rest.forward(first.forward(s, j), j); }

    __device__ Accumulator backward(Accumulator dscore, Accumulator s, int j) const {
      return first.backward(rest.backward(dscore, first.forward(s, j), j), s, j);
    }

    // What the last step takes, and that step's row.
    __device__ Accumulator last_input(Accumulator s, int j) const {
      if constexpr (sizeof...(Rest) == 0) {
        return s;
      } else {
        return rest.last_input(first.forward(s, j), j);
      }
    }
    __device__ const auto& last() const {
      if constexpr (sizeof...(Rest) == 0) {
        return first;
      } else {
        return rest.last();
      }
    }

    // That of s, of the parameter of the step with this number, or, of as many as there are, of the score.
    template <int kTerm>
    __device__ Accumulator gradient(Accumulator dscore, Accumulator s, int j) const {
      if constexpr (kTerm < 0) {
        return backward(dscore, s, j);
      } else if constexpr (kTerm == 0) {
        return first.term(rest.backward(dscore, first.forward(s, j), j), j);
      } else {
        return rest.template gradient<kTerm - 1>(dscore, first.forward(s, j), j);
      }
    }
  };

  template <class Columns>
  __device__ Row<Columns> row(int query, int head, const Columns& columns) const {
    return {*this, query, head, columns};
  }
};

template <class Accumulator>
struct ScoreOf<Accumulator> {
  Accumulator last_unit;

  __device__ ScoreOf(const Components& params, const Place& place, Accumulator unit) : last_unit(unit) {}

  __device__ Accumulator unit() const { return last_unit; }

  template <class Columns>
  struct Row {
    __device__ Row(const ScoreOf& score, int query, int head, const Columns& columns) {}
    __device__ Accumulator forward(Accumulator score, int j) const { return score; }
    __device__ Accumulator backward(Accumulator dscore, Accumulator score, int j) const { return dscore; }
    template <int kTerm>
    __device__ Accumulator gradient(Accumulator dscore, Accumulator score, int j) const {
      return dscore;
    }
  };
};
